"""Figures of a text, block by block: the example of an analysis that streams.

Blocks are cut where no word, line break or sentence end can lie across the cut, and `Tally` remembers what
goes on from one block into the next. The figures are therefore the same for every block size.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import pairwise
from typing import Annotated
from unicodedata import category, normalize

from pydantic import Field

from millstream import Context, analysis

# Written without spaces, a word each: Han and hiragana. (Katakana stays together, as in Unicode's UAX #29.)
IDEOGRAPH = r"\u3005-\u3007ぁ-ゖゝ-ゟ\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Part of the letter before: combining marks, soft hyphen, zero-width joiners. More than 30 occur in no real text,
# and normalizing them takes quadratic time.
MARK = "".join(c for c in map(chr, range(0x300, 0x10000)) if category(c)[0] == "M") + "\u00ad\u200c\u200d"
LETTERS = rf"[^\W_{IDEOGRAPH}]+(?:[{MARK}]{{1,30}}[^\W_{IDEOGRAPH}]+)*[{MARK}]{{0,30}}"
WORD = re.compile(rf"{LETTERS}(?:['’.]{LETTERS})*|[{IDEOGRAPH}][{MARK}]{{0,30}}")

STOP, CLOSING = ".!?…؟۔", r"\"'”’»)\]"
SENTENCE_END = re.compile(rf"[{STOP}][{CLOSING}]*(?=\s)|[。！？｡।]|\n\s*\n")

# After space, before an ideograph, and after what is part of neither a word nor a sentence end.
CUT = re.compile(rf"(?<=\s)(?=\S)|(?=[{IDEOGRAPH}])|(?<![\w\s{IDEOGRAPH}{MARK}{STOP}{CLOSING}])")

SYLLABLE = re.compile(
    r"""(?=[aeiouy]) (?! (?<= [aeiouy]l  | .[^aeiouyl]       ) e  $    # silent: make, whole; but ta-ble
                       | (?<= [aeiouy]l  | .[^aeiouylcghsxz] ) es $    # makes; but ta-bles, pa-ges
                       | (?<= [aeiouyl]l | .[^aeiouyltd]     ) ed $    # called; but want-ed
                     ) [aeiouy]+""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class WordCount:
    """A word, casefolded, and how often it occurs."""

    word: str
    count: int


@dataclass(frozen=True, slots=True)
class Partial:
    """A chunk: the figures of the text up to the end of the block with this number, from 1.

    `top_words` has those of the leading words that stand in this block: the counts of the others are as they were. So
    the chunks together are no larger than the text, however long its words and however short its blocks.
    """

    block: int
    of: int
    characters: int
    words: int
    lines: int
    top_words: list[WordCount]


@dataclass(frozen=True, slots=True)
class TextStats:
    """The figures of the whole text."""

    characters: Annotated[int, Field(description="Unicode code points.")]
    words: int
    distinct_words: int
    lines: int
    sentences: int
    syllables: Annotated[int, Field(description="Estimated by the rules of English.")]
    top_words: Annotated[list[WordCount], Field(description="Most frequent first, ties alphabetically.")]
    reading_ease: Annotated[float | None, Field(description="Flesch reading ease; null without words.")]
    grade: Annotated[float | None, Field(description="Flesch-Kincaid grade; null without words.")]


def cuts(text: str, size: int) -> list[int]:
    """Where blocks begin, and the last one's end: each has `size` characters, and on to the next good cut."""
    points = [0]
    while points[-1] < len(text):
        found = CUT.search(text, min(points[-1] + size, len(text)))
        points.append(found.start() if found else len(text))
    return points


def fold(word: str) -> str:
    """What a word's spellings have in common: ’ is ', and neither case nor an accent's encoding counts."""
    return normalize("NFC", word.replace("’", "'").casefold())


def syllables(word: str) -> int:
    """Estimate a folded word's syllables: groups of vowels without a silent e, es, ed at the end, or 1."""
    return len(SYLLABLE.findall(normalize("NFD", word))) or 1


def reading_ease(words: int, sentences: int, syllables: int) -> float:
    """R. Flesch, A new readability yardstick, Journal of Applied Psychology 32 (1948)."""
    return round(206.835 - 1.015 * words / sentences - 84.6 * syllables / words, 2)


def grade(words: int, sentences: int, syllables: int) -> float:
    """J. P. Kincaid et al., Derivation of new readability formulas, Research Branch Report 8-75 (1975)."""
    return round(0.39 * words / sentences + 11.8 * syllables / words - 15.59, 2)


@dataclass(slots=True)
class Tally:
    """The figures so far of a text whose blocks are added in their order, with its `top` leading words."""

    top: int
    characters: int = 0
    words: int = 0
    lines: int = 0
    sentences: int = 0
    syllables: int = 0
    in_line: bool = False
    in_sentence: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    leaders: list[str] = field(default_factory=list)
    in_block: Collection[str] = ()

    def add(self, block: str) -> None:
        self.characters += len(block)
        self.lines += len(block.splitlines()) - self.in_line
        self.in_line = block[-1:].splitlines() != [""]
        self._count(self._message(block))

    def _message(self, block: str) -> list[str]:
        """The words of the block. Sentences are counted on the way: each at its first word."""
        found: list[str] = []
        for number, stretch in enumerate(SENTENCE_END.split(block)):
            words = WORD.findall(stretch)
            goes_on = self.in_sentence and number == 0
            self.sentences += bool(words) and not goes_on
            self.in_sentence = bool(words) or goes_on
            found += words
        return found

    def _count(self, words: list[str]) -> None:
        folded: Counter[str] = Counter()
        for word, count in Counter(words).items():
            folded[fold(word)] += count
        self.words += len(words)
        self.syllables += sum(count * syllables(word) for word, count in folded.items())
        self.counts.update(folded)
        # A word in neither set had `top` words before it, and has them still: no need to look at all words.
        contenders = {*self.leaders, *folded}
        self.in_block = folded.keys()
        self.leaders = nsmallest(self.top, contenders, key=lambda word: (-self.counts[word], word))

    def top_words(self) -> list[WordCount]:
        return [WordCount(word, self.counts[word]) for word in self.leaders]

    def changed_top_words(self) -> list[WordCount]:
        """Those that the last block has."""
        return [found for found in self.top_words() if found.word in self.in_block]

    def stats(self) -> TextStats:
        readable = (self.words, self.sentences, self.syllables)
        return TextStats(
            characters=self.characters,
            words=self.words,
            distinct_words=len(self.counts),
            lines=self.lines,
            sentences=self.sentences,
            syllables=self.syllables,
            top_words=self.top_words(),
            reading_ease=reading_ease(*readable) if self.words else None,
            grade=grade(*readable) if self.words else None,
        )


@analysis("text.stats", timeout=60)
async def stats(
    ctx: Context,
    text: str,
    top: Annotated[int, Field(ge=1, le=100, description="How many of the most frequent words.")] = 10,
    block_chars: Annotated[int, Field(ge=100, description="Size of a block in characters.")] = 20_000,
) -> TextStats:
    """Count characters, words, lines, sentences and the most frequent words; say how easy the text reads.

    After each block comes a chunk with the figures so far; of the most frequent words it has those in
    the block, whose counts have changed. Progress is in characters (Unicode code points).

    A word is a run of letters and digits, with apostrophes and full stops between them (don't, 3.14), in any
    case; each Han or hiragana character is a word. A sentence has words, and ends with . ! ? before space,
    with a full stop of East Asia or India, at a blank line or with the text; so "Mr. Fox" is taken for two.

    Reading ease (Flesch 1948) goes from about 0 (hard) to 100 (easy); the grade (Kincaid et al. 1975) is a US
    school year. Both are made for English, from words per sentence and syllables per word. Syllables are
    estimated: a word's groups of vowels (a e i o u y) without a silent e, es, ed at its end, and at least 1.
    """
    tally, points = Tally(top), cuts(text, block_chars)
    for number, (start, end) in enumerate(pairwise(points), start=1):
        tally.add(text[start:end])
        so_far = (tally.characters, tally.words, tally.lines, tally.changed_top_words())
        await ctx.emit(Partial(number, len(points) - 1, *so_far))
        await ctx.progress(end, len(text))
        await asyncio.sleep(0)  # let other jobs run
    return tally.stats()
