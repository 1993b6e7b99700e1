"""`text.stats`: the same figures for every block size, hand-checked ones among them."""

import asyncio
import inspect
from dataclasses import dataclass, field
from itertools import pairwise
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from millstream.authoring.analysis import Analysis, find_analyses
from millstream.protocol.event_types import Level
from millstream_worker.analyses import text as module
from millstream_worker.analyses.text import Partial, Tally, TextStats, WordCount, cuts, fold, stats, syllables

ENGLISH = "\n\n".join(topics[name] for name in sorted(topics))
FABLE = """The fox saw the grapes. "How beautiful they look!" he said.

He jumped; he didn't reach them...
THE FOX’S pride was hurt, so he left 3.5 of them"""
CJK = "吾輩は猫である。名前はまだ無い。\nコンピューター 猫"
PIECES = [
    *("a", "e", "Fox", "don't", "don’t", "ß", "SS", "3.14", "x_y", "e\u0301", "é", "한국어", "नमस्ते"),
    *("猫", "は", "カ", "\u3099", "々", "\U0003ffff", "👩\u200d🚀", "🇩🇪", "1\ufe0f", "\ufe0f", "\u200d"),
    *(".", "?!", "…", "。", "।", "'", "’", '"', ")", "」", ",", "-", "_", "\u0301" * 31, "\x00", "\ud800"),
    *(" ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\n \n", "\u2028", "\x85", "\x1c", "\u3000", "\u00a0"),
]
texts = st.lists(st.sampled_from(PIECES)).map("".join) | st.text()


@dataclass
class Recorder:
    """A context that remembers what was said."""

    job: str = "job"
    attempt: int = 1
    chunks: list[Partial] = field(default_factory=list)
    progressed: list[tuple[float, float | None]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def emit(self, value: Any) -> None:
        self.chunks.append(value)
        self.said.append("chunk")

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        self.progressed.append((done, total))
        self.said.append("progress")

    async def log(self, message: str, level: Level = "info") -> None:
        self.said.append("log")

    def result(self, value: Any) -> None:
        self.said.append("result")

    def open(self, path: str) -> Any:
        raise FileNotFoundError(path)


def described() -> Analysis:
    return find_analyses(module)["text.stats"]


def at_once(text: str, top: int = 10) -> TextStats:
    tally = Tally(top)
    tally.add(text)
    return tally.stats()


def in_blocks(text: str, size: int, top: int = 10) -> TextStats:
    tally = Tally(top)
    for start, end in pairwise(cuts(text, size)):
        tally.add(text[start:end])
    return tally.stats()


def words_of(text: str) -> dict[str, int]:
    return {found.word: found.count for found in at_once(text, top=100).top_words}


# Known values


async def test_a_small_text_has_the_figures_counted_by_hand() -> None:
    found = await stats(Recorder(), FABLE, top=3)
    assert found == TextStats(
        characters=144,
        words=28,  # 5, 4, 2; 6; 11
        distinct_words=22,
        lines=4,
        sentences=5,
        syllables=30,  # one each, and beau-ti-ful
        top_words=[WordCount("he", 4), WordCount("the", 3), WordCount("them", 2)],
        reading_ease=110.51,  # 206.835 - 1.015 * 28/5 - 84.6 * 30/28
        grade=-0.76,  # 0.39 * 28/5 + 11.8 * 30/28 - 15.59
    )


async def test_an_empty_text_has_neither_chunks_nor_readability() -> None:
    ctx = Recorder()
    assert await stats(ctx, "") == TextStats(0, 0, 0, 0, 0, 0, [], None, None)
    assert ctx.said == []


@pytest.mark.parametrize("text", [" \n\t\n", "?! ... --- ___", "👩‍🚀 🇩🇪 🎉", "\u0301\u0301"])
async def test_a_text_without_words_has_no_sentences_and_no_readability(text: str) -> None:
    found = await stats(Recorder(), text)
    assert (found.words, found.sentences, found.syllables, found.top_words) == (0, 0, 0, [])
    assert found.reading_ease is None
    assert found.grade is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't Don’t DON'T", {"don't": 3}),
        ("'tis 'quoted' dogs'", {"tis": 1, "quoted": 1, "dogs": 1}),
        ("pi is 3.14, see example.com.", {"pi": 1, "is": 1, "3.14": 1, "see": 1, "example.com": 1}),
        ("well-known snake_case", {"well": 1, "known": 1, "snake": 1, "case": 1}),
        ("Straße STRASSE", {"strasse": 2}),
        ("é e\u0301 É E\u0301", {"é": 4}),
        ("नमस्ते नमस्ते", {"नमस्ते": 2}),
        ("한국어 문장", {"한국어": 1, "문장": 1}),
        ("猫の猫", {"猫": 2, "の": 1}),
        ("USB猫", {"usb": 1, "猫": 1}),
        ("コンピューター", {"コンピューター": 1}),
        ("か\u3099 が", {"が": 2}),
        ("party🎉party 👩‍🚀", {"party": 2}),
    ],
)
def test_words_are_found_in_many_scripts(text: str, words: dict[str, int]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", 4),
        ('"One." (Two.) ... ?! Three', 3),
        ("Version 3.14 is out", 1),
        ("Heading\n\nText.\n \nMore", 3),
        ("One line\ngoes on", 1),
        ("吾輩は猫である。名前はまだ無い。", 2),
        ("नमस्ते। दुनिया।", 2),
    ],
)
def test_a_sentence_has_words_and_an_end(text: str, sentences: int) -> None:
    assert at_once(text).sentences == sentences


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "the make whole makes called used they're don't bed yes seed dance 1984 猫"),
        (2, "table tables pages wanted handled reading boxes café idea"),
        (3, "syllable beautiful elephant"),
    ],
)
def test_syllables_are_vowel_groups_without_silent_endings(count: int, words: str) -> None:
    assert {word: syllables(fold(word)) for word in words.split()} == dict.fromkeys(words.split(), count)


def test_ties_are_broken_alphabetically() -> None:
    assert [found.word for found in at_once("d c b a d c é z", top=4).top_words] == ["c", "d", "a", "b"]


async def test_japanese_text_is_counted_by_its_characters() -> None:
    found = await stats(Recorder(), CJK, top=2)
    assert (found.characters, found.words, found.lines, found.sentences) == (26, 16, 2, 3)
    assert found.top_words == [WordCount("は", 2), WordCount("猫", 2)]


# Blocks


@given(texts, st.integers(1, 40), st.integers(1, 12))
def test_the_figures_are_the_same_for_any_block_size(text: str, size: int, top: int) -> None:
    assert in_blocks(text, size, top) == at_once(text, top)


@given(texts, st.integers(1, 40))
def test_blocks_are_the_text_and_all_but_the_last_have_the_size(text: str, size: int) -> None:
    blocks = [text[start:end] for start, end in pairwise(cuts(text, size))]
    assert "".join(blocks) == text
    assert all(len(block) >= size for block in blocks[:-1])
    assert all(blocks)


@given(texts, st.integers(1, 40))
def test_no_word_is_cut(text: str, size: int) -> None:
    points = set(cuts(text, size))
    for word in module.WORD.finditer(text):
        assert points.isdisjoint(range(word.start() + 1, word.end()))


@given(texts)
def test_lines_and_characters_are_those_of_python(text: str) -> None:
    found = in_blocks(text, 1)
    assert (found.lines, found.characters) == (len(text.splitlines()), len(text))


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])), st.integers(1, 5))
def test_the_top_words_are_those_of_a_sort_of_all_words(words: list[str], top: int) -> None:
    ranked = sorted(set(words), key=lambda word: (-words.count(word), word))[:top]
    found = in_blocks(" ".join(words), 3, top).top_words
    assert found == [WordCount(word, words.count(word)) for word in ranked]


@pytest.mark.parametrize("block_chars", [100, 1_237, 20_000, 10**30])
async def test_real_english_has_the_same_figures_for_any_block_size(block_chars: int) -> None:
    found = await stats(Recorder(), ENGLISH, block_chars=block_chars)
    assert found == at_once(ENGLISH)
    assert found.top_words[0].word == "the"
    assert found.reading_ease is not None
    assert 30 < found.reading_ease < 80
    assert found.grade is not None
    assert 5 < found.grade < 15


async def test_real_english_is_cut_into_blocks_of_about_the_size() -> None:
    ctx = Recorder()
    await stats(ctx, ENGLISH)
    ends = [0, *(chunk.characters for chunk in ctx.chunks)]
    assert all(20_000 <= end - start < 20_100 for start, end in pairwise(ends[:-1]))


@pytest.mark.parametrize("piece", ["猫", "🎉", "1,", "'a' ", '{"a":1},'])
def test_text_without_spaces_between_its_words_is_cut_all_the_same(piece: str) -> None:
    points = cuts(piece * 1_000, 100)
    assert all(end - start < 120 for start, end in pairwise(points))


def test_a_mark_stays_with_its_ideograph_even_an_unassigned_one() -> None:
    assert cuts("猫\ufe0f\U0003ffff\u0301猫", 1) == [0, 2, 4, 5]


def test_a_word_has_at_most_thirty_marks_in_a_row() -> None:
    assert [at_once("a" + "\u0301" * marks + "b").words for marks in (30, 31)] == [1, 2]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["a", "a'", "e\u0301", "\u0301\u0316", ".", ")", " ", "\n", "\r\n", "ﷺ"])
def test_a_word_longer_than_its_block_is_kept_whole_in_linear_time(piece: str) -> None:
    long = "a" + piece * 300_000
    assert cuts(long, 100) == [0, len(long)]
    assert at_once(long).words == 1


# What it tells


@given(texts, st.integers(100, 300))
async def test_every_block_makes_one_chunk_and_one_progress(text: str, block_chars: int) -> None:
    ctx, text = Recorder(), text * 40
    found = await stats(ctx, text, 5, block_chars)
    ends = cuts(text, block_chars)[1:]
    assert ctx.said == ["chunk", "progress"] * len(ends)
    assert [(chunk.block, chunk.of) for chunk in ctx.chunks] == [(n + 1, len(ends)) for n in range(len(ends))]
    assert [chunk.characters for chunk in ctx.chunks] == ends
    assert ctx.progressed == [(end, len(text)) for end in ends]
    if ctx.chunks:
        last = ctx.chunks[-1]
        assert (last.words, last.lines) == (found.words, found.lines)
        assert together(ctx.chunks, 5) == found.top_words


def together(chunks: list[Partial], top: int) -> list[WordCount]:
    """The table of top words, as a client keeps it from chunk to chunk."""
    counts = {found.word: found.count for chunk in chunks for found in chunk.top_words}
    return [WordCount(*pair) for pair in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:top]]


async def test_a_chunk_has_the_figures_of_the_text_so_far() -> None:
    ctx = Recorder()
    await stats(ctx, ENGLISH)
    for number, chunk in enumerate(ctx.chunks, 1):
        so_far = at_once(ENGLISH[: chunk.characters])
        assert (chunk.words, chunk.lines) == (so_far.words, so_far.lines)
        assert together(ctx.chunks[:number], 10) == so_far.top_words


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{number:x}" * 40 + " " for number in range(100)) + "x " * 100_000,  # long words first
        " ".join(map(str, range(60_000))),
        ENGLISH,
    ],
    ids=["long words", "words that occur once", "english"],
)
async def test_the_chunks_of_a_text_repeat_no_table(text: str) -> None:
    ctx = Recorder()
    await stats(ctx, text, 100, 100)
    told = sum(len(found.word) for chunk in ctx.chunks for found in chunk.top_words)
    assert len(ctx.chunks) > 1000
    assert told <= len(text)
    assert together(ctx.chunks, 100) == at_once(text, top=100).top_words


async def test_other_jobs_run_between_the_blocks() -> None:
    order: list[str] = []

    class Named(Recorder):
        async def emit(self, value: Any) -> None:
            order.append(self.job)

    text = "word " * 100
    await asyncio.gather(*(stats(Named(job=job), text, block_chars=100) for job in "ab"))
    assert order == ["a", "b"] * 5


def test_it_is_registered_with_limits_and_a_schema_of_its_result() -> None:
    found = described()
    assert found.name == "text.stats"
    assert found.timeout_s is not None
    assert "Flesch 1948" in found.description
    assert inspect.iscoroutinefunction(stats)
    schema = found.returns.json_schema(mode="serialization")
    assert schema["properties"]["words"] == {"title": "Words", "type": "integer"}
    assert {"type": "null"} in schema["properties"]["grade"]["anyOf"]
    assert found.returns.validate_json(TypeAdapter(TextStats).dump_json(at_once(FABLE))) == at_once(FABLE)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"top": 101}, {"block_chars": 99}, {"text": None}, {"n": 1}])
def test_parameters_out_of_their_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        described().params.model_validate({"text": "", **wrong})
