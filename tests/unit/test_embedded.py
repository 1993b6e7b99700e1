"""Where an embedded store listens, and for whom."""

import random
import socket
import stat
from pathlib import Path

import pytest

from millstream.store.embedded import NoStore, free_port, start_embedded
from millstream.store.limits import Limits
from millstream.store.pipeline import shown
from millstream.store.store import Store


def test_a_free_port_is_none_that_an_outgoing_connection_may_be_given() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = free_port()
        assert 1024 < port < lowest
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(random, "sample", lambda *_: [port, free])
        assert free_port() == free
        monkeypatch.setattr(random, "sample", lambda *_: [port])
        with pytest.raises(NoStore, match="None of 100 ports"):
            free_port()


@pytest.mark.parametrize("name", ["plain", "a name? of 50%, and # more", "long" * 40])
async def test_only_this_user_reaches_it_and_what_it_holds(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    embedded = await start_embedded(directory)
    try:
        store = Store(embedded.url, name="test", limits=Limits())
        await store.open(10)
        assert await store.pipeline.call("CONFIG", "GET", "port") == [b"port", b"0"]
        await store.close()
        for guarded in (directory, embedded.socket.parent):
            assert stat.S_IMODE(guarded.stat().st_mode) == 0o700
        assert stat.S_IMODE(embedded.socket.stat().st_mode) == 0o600
        where = embedded.socket
        embedded.process.kill()
        await embedded.process.wait()
        await embedded.restart()
        assert embedded.socket == where
        assert shown(embedded.url) == embedded.url
    finally:
        await embedded.stop()
    assert not where.exists()
    assert where.parent == directory or not where.parent.exists()
