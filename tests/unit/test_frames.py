"""WebSocket frames: any cut of the bytes gives the same messages, which are those that were sent; what breaks the
protocol or a limit is named by its code.
"""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.frames import Opcode as Theirs

from millstream_api.wire.frames import (
    Close,
    FrameReader,
    Message,
    Opcode,
    Violation,
    close_code,
    close_frame,
    frame,
)
from tests.unit.test_http1 import cut

MAX_BYTES, MAX_FRAGMENTS = 70_000, 5


def reader() -> FrameReader:
    return FrameReader(max_bytes=MAX_BYTES, max_fragments=MAX_FRAGMENTS)


def of_client(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A frame as another implementation masks and writes it."""
    return Frame(Theirs(opcode), payload, final).serialize(mask=True, extensions=[])


def read(packets: Iterable[bytes]) -> tuple[list[Message], Close | None]:
    reading, messages = reader(), []
    try:
        for packet in packets:
            reading.receive(packet)
            while (message := reading.next_message()) is not None:
                messages.append(message)
    except Violation as violation:
        return messages, violation.code
    return messages, None


CONTROL = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Message]]:
    """A message in up to MAX_FRAGMENTS fragments, with control frames between, as bytes; and what is to be read."""
    if draw(st.booleans()):
        text = draw(st.text(max_size=60)) * draw(st.sampled_from([1, 1, 40, 300]))
        payload, message = text.encode()[:MAX_BYTES], Message(Opcode.TEXT, text=text)
    else:
        payload = draw(st.binary(max_size=60)) * draw(st.sampled_from([1, 2, 40, 1100]))
        message = Message(Opcode.BINARY, payload)
    parts = cut(payload, draw(st.lists(st.integers(0, 70_000), max_size=MAX_FRAGMENTS - 1))) or [b""]
    written, between = b"", []
    for number, part in enumerate(parts):
        if number and draw(st.booleans()):
            opcode, said = draw(CONTROL)
            written += of_client(opcode, said)
            between.append(Message(opcode, said))
        opcode = Opcode.CONTINUATION if number else message.opcode
        written += of_client(opcode, part, final=number == len(parts) - 1)
    return written, [*between, message]


@settings(max_examples=200)
@given(st.lists(messages(), max_size=4), st.lists(st.integers(0, 100_000), max_size=30))
def test_what_another_implementation_sends_is_read_in_any_packets(
    sent: list[tuple[bytes, list[Message]]], at: list[int]
) -> None:
    data = b"".join(written for written, _ in sent)
    assert read(cut(data, at)) == ([message for _, whole in sent for message in whole], None)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.binary(max_size=20), messages().map(lambda sent: sent[0][:500])), max_size=5).map(b"".join)
)
def test_any_bytes_in_any_packets_come_to_the_same(data: bytes) -> None:
    assert read([data]) == read(bytes([byte]) for byte in data)


def raw(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes([first, second]) + rest


TEXT = of_client(1, b"good")
VIOLATIONS = {
    "not masked": (Close.PROTOCOL_ERROR, raw(0x81, 0)),
    "a reserved bit": (Close.PROTOCOL_ERROR, raw(0xC1, 0x80, bytes(4))),
    "an unknown opcode": (Close.PROTOCOL_ERROR, raw(0x83, 0x80, bytes(4))),
    "an unknown control opcode": (Close.PROTOCOL_ERROR, raw(0x8B, 0x80, bytes(4))),
    "a ping in fragments": (Close.PROTOCOL_ERROR, raw(0x09, 0x80, bytes(4))),
    "a ping of 126 bytes": (Close.PROTOCOL_ERROR, raw(0x89, 0xFE, b"\x00\x7e")),
    "a continuation of nothing": (Close.PROTOCOL_ERROR, of_client(0, b"x")),
    "a message within another": (Close.PROTOCOL_ERROR, of_client(1, b"x", final=False) + of_client(1, b"y")),
    "125 in two bytes": (Close.PROTOCOL_ERROR, raw(0x81, 0xFE, b"\x00\x7d")),
    "65535 in eight bytes": (Close.PROTOCOL_ERROR, raw(0x81, 0xFF, (65_535).to_bytes(8))),
    "a text that is not UTF-8": (Close.NOT_UTF8, of_client(1, b"\xff")),
    "half of a letter": (Close.NOT_UTF8, of_client(1, b"\xc3", final=False) + of_client(0, b"x")),
    "too large": (Close.TOO_BIG, raw(0x81, 0xFF, (MAX_BYTES + 1).to_bytes(8))),
    "larger than there is": (Close.TOO_BIG, raw(0x82, 0xFF, b"\xff" * 8)),
    "too large together": (
        Close.TOO_BIG, of_client(2, bytes(MAX_BYTES), final=False) + of_client(0, b"x", final=False),
    ),
    "too many fragments": (
        Close.POLICY, of_client(1, b"", final=False) + of_client(0, b"", final=False) * MAX_FRAGMENTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("code", "data"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_breaks_the_protocol_or_a_limit_has_its_code_and_what_came_before_is_read(
    code: Close, data: bytes
) -> None:
    assert read([TEXT + data + TEXT]) == ([Message(Opcode.TEXT, text="good")], code)


def test_a_message_of_the_limit_is_read_and_a_frame_over_it_is_refused_by_its_head() -> None:
    assert read([of_client(2, bytes(MAX_BYTES))]) == ([Message(Opcode.BINARY, bytes(MAX_BYTES))], None)
    assert read([of_client(2, bytes(MAX_BYTES + 1))[:10]]) == ([], Close.TOO_BIG)


def test_control_frames_do_not_count_as_fragments() -> None:
    data = of_client(1, b"a", final=False) + of_client(9, b"") * 3 * MAX_FRAGMENTS + of_client(0, b"b")
    messages, code = read([data])
    assert (messages[-1].text, code) == ("ab", None)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_is_written_is_as_another_implementation_writes_it(size: int) -> None:
    assert frame(Opcode.TEXT, b"x" * size) == Frame(Theirs.TEXT, b"x" * size).serialize(mask=False, extensions=[])


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", 1005), (b"\x03\xe8", 1000), (b"\x03\xf5why \xc3\xa9", 1013), (b"\x0f\xa0", 4000), (b"\x13\x87", 4999)],
)
def test_the_code_of_a_close(payload: bytes, code: int) -> None:
    assert close_code(payload) == code


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", 1002), (b"\x03\xed", 1002), (b"\x03\xee", 1002), (b"\x03\xf7", 1002), (b"\x00\x00", 1002),
     (b"\x13\x88", 1002), (b"\x03\xe8\xff", 1007)],
)  # fmt: skip
def test_a_close_that_has_no_meaning_is_a_violation(payload: bytes, code: int) -> None:
    with pytest.raises(Violation) as caught:
        close_code(payload)
    assert caught.value.code == code


def test_a_reason_is_cut_to_what_a_control_frame_holds_between_two_letters() -> None:
    written = close_frame(1008, "é" * 100)
    assert (written[1], written[4:].decode()) == (2 + 122, "é" * 61)
