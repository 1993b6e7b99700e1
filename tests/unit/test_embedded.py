"""Where an embedded store listens."""

import random
import socket
from pathlib import Path

import pytest

from millstream.store.embedded import NoStore, free_port


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
