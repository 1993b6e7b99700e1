"""Requests out of bytes: any cut of the bytes gives the same ones, each byte belongs to one, and nothing follows an
error.
"""

from collections.abc import Iterable
from http import HTTPStatus
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream_api.wire.http1 import CHUNKS_AT_ONCE, MAX_CHUNK_LINE, Refused, RequestReader

HEAD_BYTES, FIELDS = 500, 20
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Whole(NamedTuple):
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Read(NamedTuple):
    """All that came of some bytes."""

    requests: list[Whole]
    unfinished: bytes | None  # what there is of a body that has not ended
    refused: HTTPStatus | None
    held: int


def reader() -> RequestReader:
    return RequestReader(head_bytes=HEAD_BYTES, fields=FIELDS)


def read(packets: Iterable[bytes]) -> Read:
    """As a connection does it: one request at a time, and none behind an error."""
    reading, requests = reader(), []
    request, body = None, b""
    try:
        for packet in packets:
            reading.receive(packet)
            while True:
                if request is None:
                    request, body = reading.next_request(), b""
                    if request is None:
                        break
                before = reading.held
                body += reading.read_body()
                if reading.body_complete:
                    requests.append(Whole(request.method, request.target, tuple(request.headers), body))
                    request = None
                elif reading.held == before:
                    break
    except Refused as refused:
        return Read(requests, None, refused.status, 0)
    return Read(requests, None if request is None else body, None, reading.held)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    """The bytes in packets that end at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[begin:end] for begin, end in pairwise(places)]


TOKENS = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True).map(str.encode)
VALUES = st.from_regex(r"(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]{0,15}[!-~\x80-\xff])?)?", fullmatch=True).map(
    lambda text: text.encode("latin-1")
)
FRAMING = {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
OTHERS = st.lists(st.tuples(TOKENS.filter(lambda name: name.lower() not in FRAMING), VALUES), max_size=4)
TARGETS = st.from_regex(rb"/[!\"$-~]{0,20}", fullmatch=True)
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"PROPFIND"])


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks of any sizes, with extensions and trailers."""
    parts = [part for part in cut(body, draw(st.lists(st.integers(0, 200), max_size=5))) if part]
    extension = draw(st.sampled_from([b"", b";a=b", b" ; x", b';q="y"']))
    trailers = draw(st.sampled_from([b"", b"Authorization: Bearer x\r\n", b"A: 1\r\nB:\r\n"]))
    written = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return written + draw(st.sampled_from([b"0", b"000", b"0;last"])) + b"\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Whole]:
    """A request as bytes, and what is to be read."""
    method, target, body = draw(METHODS), draw(TARGETS), draw(st.binary(max_size=80))
    headers = [(b"Host", b"x:80"), *draw(OTHERS)]
    if draw(st.booleans()):
        headers.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        written = draw(chunked(body))
    else:
        if body or draw(st.booleans()):
            headers.append((b"Content-Length", b"%d" % len(body)))
        written = body
    space = draw(st.sampled_from([b"", b" ", b"\t "]))
    lines = b"".join(b"%b:%b%b%b\r\n" % (name, space, value, space) for name, value in headers)
    blank = draw(st.sampled_from([b"", b"\r\n"]))  # RFC 9112 §2.2
    whole = Whole(method.decode(), target, tuple((name.lower(), value) for name, value in headers), body)
    return blank + b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines) + written, whole


@given(st.lists(requests(), max_size=4), st.lists(st.integers(0, 3000), max_size=40))
def test_any_pipeline_in_any_packets_is_read_as_it_was_written(
    written: list[tuple[bytes, Whole]], at: list[int]
) -> None:
    packets = cut(b"".join(data for data, _ in written), at)
    assert read(packets) == Read([whole for _, whole in written], None, None, 0)


PIECES = st.one_of(
    st.binary(max_size=30),
    requests().map(lambda written: written[0]),
    st.sampled_from([
        b"\r\n", b"\n", b"\r", b"\x00", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"a" * 600,
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"Transfer-Encoding: chunked\r\n", b"POST /x HTTP/1.1\r\n", b"Host: y\r\n\r\n", b"Upgrade: h2c\r\n",
        b"5\r\nhello\r\n",
    ]),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(st.integers(0, 3000), max_size=40))
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n" + GET, [])
def test_any_bytes_in_any_packets_come_to_the_same(data: bytes, at: list[int]) -> None:
    """Requests, the error and what is left: also for one packet, and for a packet for each byte."""
    whole = read([data])
    assert read(cut(data, at)) == whole
    assert read(bytes([byte]) for byte in data) == whole


def head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


HOST = b"Host: x"
REFUSED = {
    "no Host": (400, head()),
    "two Hosts": (400, head(HOST, HOST)),
    "a Host that is a list": (400, head(b"Host: a, b")),
    "a Host with a path": (400, head(b"Host: a b/?#")),
    "a Host with a user": (400, head(b"Host: me@x")),
    "a Host with an odd port": (400, head(b"Host: x:8o")),
    "no version": (400, head(HOST, first=b"GET /")),
    "lower-case version": (400, head(HOST, first=b"GET / http/1.1")),
    "HTTP/2": (505, head(first=b"PRI * HTTP/2.0")),
    "two blanks": (400, head(HOST, first=b"GET  / HTTP/1.1")),
    "a blank behind": (400, head(HOST, first=b"GET / HTTP/1.1 ")),
    "a target with a fragment": (400, head(HOST, first=b"GET /#x HTTP/1.1")),
    "a target without a slash": (400, head(HOST, first=b"GET x HTTP/1.1")),
    "a target that is not ASCII": (400, head(HOST, first="GET /ü HTTP/1.1".encode())),
    "a URL with a user": (400, head(HOST, first=b"GET http://me@x/ HTTP/1.1")),
    "a star": (400, head(HOST, first=b"GET * HTTP/1.1")),
    "CONNECT": (501, head(HOST, first=b"CONNECT x:80 HTTP/1.1")),
    "a method that is none": (400, head(HOST, first=b"G(T / HTTP/1.1")),
    "a field without a colon": (400, head(HOST, b"nonsense")),
    "a field without a name": (400, head(HOST, b": x")),
    "a blank before the colon": (400, head(HOST, b"A : x")),
    "a folded line": (400, head(HOST, b"A: x", b" y: z")),
    "a bare line feed": (400, head(HOST, b"A: x\nB: y")),
    "a bare carriage return": (400, head(HOST, b"A: x\rB: y")),
    "a NUL": (400, head(HOST, b"A: x\x00y")),
    "a length that is no number": (400, head(HOST, b"Content-Length: 0x3")),
    "a length with a sign": (400, head(HOST, b"Content-Length: +3")),
    "a length below nothing": (400, head(HOST, b"Content-Length: -1")),
    "an empty length": (400, head(HOST, b"Content-Length:")),
    "a length of 19 digits": (400, head(HOST, b"Content-Length: " + b"1" * 19)),
    "two lengths": (400, head(HOST, b"Content-Length: 3", b"Content-Length: 4")),
    "a list of lengths": (400, head(HOST, b"Content-Length: 3, 3")),
    "length and chunks": (400, head(HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "gzip, chunked": (501, head(HOST, b"Transfer-Encoding: gzip, chunked")),
    "gzip and chunked": (501, head(HOST, b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked")),
    "chunked twice": (400, head(HOST, b"Transfer-Encoding: chunked, chunked")),
    "chunked, gzip": (400, head(HOST, b"Transfer-Encoding: chunked, gzip")),
    "identity": (400, head(HOST, b"Transfer-Encoding: identity")),
    "xchunked": (400, head(HOST, b"Transfer-Encoding: xchunked")),
    "chunks in HTTP/1.0": (400, head(HOST, b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0")),
    "a handshake with a body": (400, head(HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 5")),
    "a handshake in chunks": (
        400, head(HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked")
    ),
    "a handshake by POST": (400, head(HOST, b"Connection: Upgrade", b"Upgrade: websocket", first=b"POST / HTTP/1.1")),
    "a head over the limit": (431, head(HOST, b"A: " + b"x" * HEAD_BYTES)),
    "a head over the limit, of a handshake": (
        431, head(HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Cookie: " + b"x" * HEAD_BYTES)
    ),
    "a head that never ends": (431, b"GET /" + b"x" * HEAD_BYTES),
    "too many fields": (431, head(HOST, *[b"A:"] * FIELDS)),
}  # fmt: skip


@pytest.mark.parametrize(("status", "data"), REFUSED.values(), ids=REFUSED)
def test_what_might_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(status: int, data: bytes) -> None:
    for packets in ([GET + data + GET], [GET, data, GET]):
        found = read(packets)
        assert (len(found.requests), found.refused) == (1, status)


CHUNKS = {
    "no number": b"x\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "sixteen digits": b"0000000000000005\r\nhello\r\n0\r\n\r\n",
    "longer than it says": b"5\r\nhello!\r\n0\r\n\r\n",
    "a bare line feed": b"5\nhello\r\n0\r\n\r\n",
    "an extension with a NUL": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "an extension without end": b"5;" + b"x" * MAX_CHUNK_LINE,
    "a trailer that is none": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("written", CHUNKS.values(), ids=CHUNKS)
def test_chunks_that_are_none_are_refused(written: bytes) -> None:
    found = read([head(HOST, b"Transfer-Encoding: chunked", first=b"PUT / HTTP/1.1") + written + GET])
    assert (found.requests, found.refused) == ([], 400)


def test_trailers_are_bounded_as_a_head_is() -> None:
    begun = head(HOST, b"Transfer-Encoding: chunked", first=b"PUT / HTTP/1.1") + b"0\r\n"
    for packet in (b"A: " + b"x" * 2 * HEAD_BYTES, b"A: b\r\n" * HEAD_BYTES):
        assert read([begun, packet]).refused == 431
    assert read([begun, b"A: " + b"x" * (HEAD_BYTES // 2) + b"\r\n\r\n"]).requests[0].body == b""


def test_a_head_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    room = HEAD_BYTES - len(head(HOST, b"A: ")) + len(b"\r\n\r\n")
    for over in (0, 1):
        found = read([head(HOST, b"A: " + b"x" * (room + over))])
        assert (len(found.requests), found.refused) == ((1, None), (0, 431))[over]


def test_an_offer_of_another_protocol_changes_nothing_about_a_request() -> None:
    """RFC 9110 §7.8: a server may ignore Upgrade, and then the request is what it is without it."""
    h2c = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"]
    put = head(HOST, *h2c, b"Content-Length: 30", first=b"PUT /files/x HTTP/1.1")
    smuggled = b"DELETE /files/y HTTP/1.1\r\nHo: "
    found = read([put + smuggled + GET])
    assert [(whole.method, whole.body) for whole in found.requests] == [("PUT", smuggled), ("GET", b"")]


@pytest.mark.parametrize(
    ("lines", "handshake"),
    [
        ([b"Connection: Upgrade", b"Upgrade: websocket"], True),
        ([b"Connection: keep-alive, upgrade", b"Upgrade: WebSocket"], True),
        ([b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: foo, websocket"], True),
        ([b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 0"], True),
        ([b"Connection: close", b"Upgrade: websocket"], False),
        ([b"Upgrade: websocket"], False),
        ([b"Connection: Upgrade", b"Upgrade: websockets"], False),
    ],
)
def test_a_handshake_is_one_only_with_both_headers(lines: list[bytes], handshake: bool) -> None:
    reading = reader()
    reading.receive(head(HOST, *lines))
    request = reading.next_request()
    assert request is not None
    assert request.handshake is handshake


@pytest.mark.parametrize(
    ("first", "lines", "target", "host"),
    [
        (b"GET http://a.b:81/c?d HTTP/1.1", [HOST], b"/c?d", [b"a.b:81"]),
        (b"GET HTTP://[::1] HTTP/1.1", [HOST], b"/", [b"[::1]"]),
        (b"GET http://a?b HTTP/1.1", [HOST], b"/?b", [b"a"]),
        (b"OPTIONS * HTTP/1.1", [HOST], b"*", [b"x"]),
        (b"GET // HTTP/1.1", [b"Host:"], b"//", [b""]),
        (b"GET / HTTP/1.0", [], b"/", []),
    ],
)
def test_the_forms_of_a_target(first: bytes, lines: list[bytes], target: bytes, host: list[bytes]) -> None:
    reading = reader()
    reading.receive(head(*lines, first=first))
    request = reading.next_request()
    assert request is not None
    assert request.target == target
    assert [value for name, value in request.headers if name == b"host"] == host


@pytest.mark.parametrize(
    ("first", "lines", "keeps", "expects"),
    [
        (b"GET / HTTP/1.1", [], True, False),
        (b"GET / HTTP/1.1", [b"Connection: x, Close"], False, False),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive", b"Expect: 100-continue"], False, False),
        (b"PUT / HTTP/1.1", [b"Expect: 100-Continue", b"Content-Length: 1"], True, True),
    ],
)
def test_what_becomes_of_the_connection(first: bytes, lines: list[bytes], keeps: bool, expects: bool) -> None:
    reading = reader()
    reading.receive(head(HOST, *lines, first=first))
    request = reading.next_request()
    assert request is not None
    assert (request.keep_alive, request.expects_continue) == (keeps, expects)


def test_one_call_decodes_a_bounded_number_of_chunks() -> None:
    reading = reader()
    reading.receive(head(HOST, b"Transfer-Encoding: chunked", first=b"PUT / HTTP/1.1"))
    reading.next_request()
    reading.receive(b"1\r\nx\r\n" * 3 * CHUNKS_AT_ONCE)
    assert [len(reading.read_body()) for _ in range(4)] == [CHUNKS_AT_ONCE] * 3 + [0]
