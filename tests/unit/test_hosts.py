"""Which `Host` is answered."""

import pytest

from millstream_api.hosts import is_answered

LISTED = frozenset({"a.example", "*.b.example", "192.0.2.7", "fd00::1"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST", "localhost.", "localhost.:80", "localhost:", "dev.localhost",
        "a.b.localhost:3000", "127.0.0.1", "127.0.0.1:8000", "127.8.9.10", "[::1]", "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:80",
    ],
)  # fmt: skip
def test_this_machines_own_names_are_answered(host: str) -> None:
    assert is_answered(host, frozenset())


@pytest.mark.parametrize(
    "host",
    ["a.example", "a.example:8443", "A.Example.", "x.b.example", "x.y.b.example:1", "192.0.2.7:80", "[FD00::1]:80"],
)
def test_what_is_listed_is_answered_at_any_port_and_nothing_else_is_without(host: str) -> None:
    assert is_answered(host, LISTED)
    assert not is_answered(host, frozenset({""}))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost",
        "x.a.example", "b.example", "xb.example", "192.0.2.8", "0.0.0.0", "[::]", "[fd00::2]", "128.0.0.1", "127.1",
        "", ":8000", ".", "..localhost..", "localhost:80:80", "localhost@evil.example", "evil.example@localhost",
        "localhost/", "localhost evil.example", "localhost, evil.example", "[::1", "::1", "[127.0.0.1]x",
        "loc\xe4lhost", "localhost:80x", "*.b.example", "\nlocalhost", "localhost\n",
    ],
)  # fmt: skip
def test_every_other_host_is_not(host: str) -> None:
    assert not is_answered(host, LISTED)
