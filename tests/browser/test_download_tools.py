"""Other people's clients on our files: what they get is byte-identical, and by ranges where they ask for ranges."""

import asyncio
import os
import random
import re
import shutil
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Response

from tests.browser.conftest import Live
from tests.processes import until

MIB = 2**20
CONTENT = random.Random(5).randbytes(40 * MIB + 321)


async def run(*arguments: str | Path) -> str:
    """Run a program, which must succeed; returns what it printed."""
    if not shutil.which(str(arguments[0])):
        assert not os.environ.get("CI"), f"CI must have {arguments[0]}"
        pytest.skip(f"there is no {arguments[0]} here")
    running = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await running.communicate()
    assert running.returncode == 0, printed.decode(errors="replace")[-2000:]
    return printed.decode(errors="replace")


@pytest.fixture
def url(live: Live) -> str:
    (live.data / "big.bin").write_bytes(CONTENT)
    return f"{live.api.url}/files/big.bin"


async def test_curl_gets_it_whole_in_parts_and_resumed(url: str, tmp_path: Path) -> None:
    got = tmp_path / "got"
    await run("curl", "-sf", "-o", got, url)
    assert got.read_bytes() == CONTENT
    for asked, wanted in {"0-99": CONTENT[:100], "5000000-": CONTENT[5000000:], "-1000": CONTENT[-1000:]}.items():
        await run("curl", "-sf", "-r", asked, "-o", got, url)
        assert got.read_bytes() == wanted
    got.write_bytes(CONTENT[: len(CONTENT) // 3])
    await run("curl", "-sf", "-C", "-", "-o", got, url)
    assert got.read_bytes() == CONTENT


async def test_curl_gets_several_ranges_in_one_answer(url: str, tmp_path: Path) -> None:
    got, head = tmp_path / "got", tmp_path / "head"
    await run("curl", "-sf", "-r", "0-99,5000000-5199999,-1000", "-D", head, "-o", got, url)
    boundary = re.search(r"content-type: multipart/byteranges; boundary=(\S+)", head.read_text())
    assert boundary
    begin, *parts, end = got.read_bytes().split(b"--" + boundary[1].encode())
    assert (begin, end) == (b"", b"--\r\n")
    size = len(CONTENT)
    for part, start, stop in zip(parts, (0, 5000000, size - 1000), (100, 5200000, size), strict=True):
        about, _, content = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{stop - 1}/{size}".encode() in about
        assert content == CONTENT[start:stop] + b"\r\n"


async def test_what_a_client_that_leaves_got_counts(live: Live, url: str) -> None:
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        got = 0
        async with http.stream("GET", url) as answer:
            async for piece in answer.aiter_raw():
                got += len(piece)
                if got > len(CONTENT) // 2:
                    break

        async def closed() -> bool:
            return not (await http.get("/streams")).json()["open"]

        await until(closed, what="the stream to end")
        assert got <= (await http.get("/streams")).json()["bytes_sent"] < len(CONTENT)


async def test_wget_goes_on_where_it_was(url: str, tmp_path: Path) -> None:
    got = tmp_path / "big.bin"
    got.write_bytes(CONTENT[: len(CONTENT) // 3])
    printed = await run("wget", "--no-proxy", "-c", "-P", tmp_path, url)
    assert "206 Partial Content" in printed
    assert got.read_bytes() == CONTENT


async def test_aria2_gets_it_over_sixteen_connections(url: str, tmp_path: Path) -> None:
    await run("aria2c", "-q", "-x16", "-s16", "-k1M", "--all-proxy=", "-d", tmp_path, "-o", "got", url)
    assert (tmp_path / "got").read_bytes() == CONTENT


async def make_video(path: Path, *codec: str) -> None:
    """Twenty seconds, and some ten megabytes: two seconds of noise, which packs badly, ten times over."""
    once = path.with_stem("once")
    source = "testsrc=duration=2:size=480x360:rate=10,noise=alls=40:allf=t"
    await run("ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *codec, once)
    await run("ffmpeg", "-v", "error", "-stream_loop", "9", "-i", once, "-c", "copy", path)


async def test_ffprobe_reads_a_video_whose_index_is_at_its_end(live: Live) -> None:
    await make_video(live.data / "v.mp4", "-c:v", "mpeg4", "-q:v", "2")
    content = (live.data / "v.mp4").read_bytes()
    index = content.rindex(b"moov") - 4
    assert index > 4 * MIB
    printed = await run("ffprobe", "-v", "debug", "-show_entries", "format=duration", f"{live.api.url}/files/v.mp4")
    duration = re.search(r"^duration=([\d.]+)$", printed, re.MULTILINE)
    assert duration
    assert float(duration[1]) == pytest.approx(20, abs=0.2)
    assert f"Range: bytes={index}-" in printed, "it went to the index by a range"


async def test_a_browser_seeks_in_a_video(live: Live, browser: Browser) -> None:
    await make_video(live.data / "v.webm", "-c:v", "libvpx", "-b:v", "20M", "-qmax", "10", "-g", "10")
    page = await browser.new_page()
    answers: list[tuple[int, int]] = []  # status, first byte

    def note(response: Response) -> None:
        if response.url.endswith(".webm"):
            span = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
            answers.append((response.status, int(span[1]) if span else 0))

    page.on("response", note)
    await page.goto(f"{live.api.url}/healthz")  # a document without a policy
    at = await page.evaluate(
        """url => new Promise((resolve, reject) => {
            const video = document.createElement("video");
            video.preload = "metadata"; video.src = url; video.muted = true;
            video.onerror = () => reject(video.error.message);
            video.onloadedmetadata = () => { video.currentTime = 19; };
            video.onseeked = () => resolve([video.currentTime, video.duration]);
            document.body.append(video);
        })""",
        f"{live.api.url}/files/v.webm",
    )
    assert at == [pytest.approx(19, abs=0.1), pytest.approx(20, abs=0.2)]
    assert {status for status, _ in answers} == {206}
    size = (live.data / "v.webm").stat().st_size
    assert max(start for _, start in answers) > size / 2, "it went to the end by a range"


async def test_a_parquet_file_is_read_by_ranges(live: Live) -> None:
    fsspec, pyarrow = pytest.importorskip("fsspec"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = 200_000
    table = pyarrow.table({name: [random.random() for _ in range(rows)] for name in "abcdef"})
    parquet.write_table(table, live.data / "t.parquet", row_group_size=rows // 10)
    size = (live.data / "t.parquet").stat().st_size

    def read() -> object:
        with fsspec.filesystem("http").open(f"{live.api.url}/files/t.parquet", block_size=64 * 1024) as file:
            return parquet.ParquetFile(file).read_row_group(3, columns=["b", "e"])

    got = await asyncio.to_thread(read)
    assert got == table.slice(3 * (rows // 10), rows // 10).select(["b", "e"])
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        assert 0 < (await http.get("/streams")).json()["bytes_sent"] < size / 4
