"""Other people's clients that send files: what they offer beside HTTP/1.1, and how soon they leave."""

import asyncio
import random
import re
from pathlib import Path

import pytest

from tests.browser.conftest import Live
from tests.browser.test_download_tools import run
from tests.processes import until

PROGRAM = Path(__file__).with_name("PutWithJava.java")
SIZES = [0, 1, 10_000, 3_000_001]


@pytest.fixture(params=SIZES)
def sent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "sent"
    path.write_bytes(random.Random(request.param).randbytes(request.param))
    return path


@pytest.mark.parametrize("way", [["--http2"], ["--http1.0"], [], ["-H", "Expect: 100-continue"], ["-H", "Expect:"]])
async def test_curl_puts_a_file(live: Live, sent: Path, way: list[str]) -> None:
    for status in ("201", "204"):
        said = await run(
            "curl", "-sf", "-o", "/dev/null", "-w", "%{http_code}", *way, "-T", sent, f"{live.api.url}/files/c"
        )
        assert said == status
        assert (live.data / "c").read_bytes() == sent.read_bytes()
    (live.data / "c").unlink()


async def test_curl_puts_what_it_reads_in_chunks(live: Live, sent: Path) -> None:
    await run("sh", "-c", f"curl -sf --http2 -T - {live.api.url}/files/chunks < {sent}")
    assert (live.data / "chunks").read_bytes() == sent.read_bytes()


async def test_javas_client_puts_a_file(live: Live, sent: Path) -> None:
    said = await run("java", PROGRAM, f"{live.api.url}/files/java", sent, "3")
    assert said.split() == ["201", "204"] * 3
    for n in range(3):
        assert (live.data / f"java{n}").read_bytes() == sent.read_bytes()
        (live.data / f"java{n}").unlink()


async def test_a_live_stream_of_ffmpeg_arrives_with_its_playlist_and_all_its_segments(live: Live) -> None:
    """It closes each connection as soon as it has sent what it had to say."""
    await run(
        "ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=8:size=128x96:rate=10", "-g", "20", "-f", "hls",
        "-hls_time", "2", "-hls_list_size", "0", "-method", "PUT", f"{live.api.url}/files/hls/live.m3u8",
    )  # fmt: skip
    playlist = live.data / "hls" / "live.m3u8"

    async def complete() -> bool:
        return playlist.is_file() and "#EXT-X-ENDLIST" in playlist.read_text()

    await until(complete, what="the last playlist")
    segments = re.findall(r"^live\d+\.ts$", playlist.read_text(), re.MULTILINE)
    assert len(segments) == 4

    async def all_there() -> bool:
        return all((playlist.parent / name).is_file() for name in segments)

    await until(all_there, what="all segments")
    durations = await asyncio.gather(*(
        run("ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", playlist.parent / name)
        for name in segments
    ))  # fmt: skip
    assert all(1.5 < float(duration) < 2.5 for duration in durations)
