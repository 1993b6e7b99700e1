"""WebSocket frames, as a server reads and writes them (RFC 6455 §5). No I/O, no extensions.

A message that comes in fragments is put together here. What breaks the protocol, or a limit, is a Violation: the code
to close with, and why.
"""

from enum import IntEnum
from typing import NamedTuple

try:
    from websockets.speedups import apply_mask  # in C: a hundred times as fast for a large message
except ImportError:
    from websockets.utils import apply_mask


class Opcode(IntEnum):
    CONTINUATION, TEXT, BINARY = 0, 1, 2
    CLOSE, PING, PONG = 8, 9, 10


class Close(IntEnum):
    """Codes to close with (RFC 6455 §7.4.1)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    NO_CODE = 1005  # never in a frame
    NOT_UTF8 = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTARTING = 1012
    OVERLOADED = 1013


class Violation(Exception):
    def __init__(self, code: Close, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Message(NamedTuple):
    """A whole message, or a control frame. `text` is that of a text; `data` that of any other."""

    opcode: Opcode
    data: bytes = b""
    text: str = ""


class FrameReader:
    """`max_bytes` bounds a message, `max_fragments` the frames that it comes in."""

    __slots__ = ("_data", "_fragments", "_max_bytes", "_max_fragments", "_message", "_opcode")

    def __init__(self, *, max_bytes: int, max_fragments: int) -> None:
        self._max_bytes = max_bytes
        self._max_fragments = max_fragments
        self._data = bytearray()
        self._message = bytearray()  # of a message whose last fragment has not come
        self._opcode: Opcode | None = None  # that message's
        self._fragments = 0

    @property
    def held(self) -> int:
        """Bytes that have come and were not read yet."""
        return len(self._data)

    def receive(self, data: bytes) -> None:
        self._data += data

    def next_message(self) -> Message | None:
        """The next message or control frame, or None where it has not come in full. Raises Violation."""
        while (frame := self._next_frame()) is not None:
            opcode, final, payload = frame
            if opcode >= Opcode.CLOSE:
                return Message(opcode, payload)
            if opcode:
                if final:
                    return _message(opcode, payload)
                self._opcode = opcode
            self._message += payload
            self._fragments += 1
            if self._fragments > self._max_fragments:
                raise Violation(Close.POLICY, f"a message may come in at most {self._max_fragments} fragments")
            if final:
                whole, self._message = bytes(self._message), bytearray()
                begun, self._opcode, self._fragments = self._opcode, None, 0
                assert begun is not None
                return _message(begun, whole)
        return None

    def _next_frame(self) -> tuple[Opcode, bool, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        first, size = data[0], data[1]
        opcode = self._check(first, size)
        size &= 0x7F
        at = 2
        if size > 125:
            at = 4 if size == 126 else 10
            if len(data) < at:
                return None
            least, size = (126, 65_536)[size == 127], int.from_bytes(data[2:at])
            if size < least:
                raise Violation(Close.PROTOCOL_ERROR, "the length of a frame is not written in its shortest form")
        if opcode < Opcode.CLOSE and len(self._message) + size > self._max_bytes:
            raise Violation(Close.TOO_BIG, f"a message may have at most {self._max_bytes} bytes")
        end = at + 4 + size
        if len(data) < end:
            return None
        payload = apply_mask(data[at + 4 : end], data[at : at + 4])
        del data[:end]
        return opcode, first >= 0x80, payload

    def _check(self, first: int, second: int) -> Opcode:
        """What the first two bytes of a frame say by themselves. Raises Violation."""
        opcode, final = first & 0x0F, first >= 0x80
        if first & 0x70 or opcode not in _OPCODES:
            raise Violation(Close.PROTOCOL_ERROR, "a frame uses a bit or an opcode that was not agreed on")
        if second < 0x80:
            raise Violation(Close.PROTOCOL_ERROR, "a frame of a client must be masked")
        if opcode >= Opcode.CLOSE:
            if not final or second & 0x7F > 125:
                raise Violation(Close.PROTOCOL_ERROR, "a control frame is one frame of at most 125 bytes")
        elif (opcode == Opcode.CONTINUATION) is (self._opcode is None):
            raise Violation(Close.PROTOCOL_ERROR, "a message begins before the last one has ended, or goes on after it")
        return _OPCODES[opcode]


_OPCODES = {int(opcode): opcode for opcode in Opcode}


def _message(opcode: Opcode, payload: bytes) -> Message:
    if opcode is Opcode.BINARY:
        return Message(opcode, payload)
    try:
        return Message(opcode, text=payload.decode())
    except UnicodeDecodeError:
        raise Violation(Close.NOT_UTF8, "a text is not UTF-8") from None


def close_code(payload: bytes) -> Close | int:
    """The code in a Close frame; NO_CODE where there is none. Raises Violation."""
    if not payload:
        return Close.NO_CODE
    code = int.from_bytes(payload[:2])
    # RFC 6455 §7.4.2, and the registry it set up: 1004 to 1006 and 1015 are in no frame.
    if len(payload) < 2 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise Violation(Close.PROTOCOL_ERROR, "a close with a code that has no meaning")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(Close.NOT_UTF8, "the reason of a close is not UTF-8") from None
    return code


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """A whole message in one frame of a server, which is not masked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    short = reason.encode()[:123].decode(errors="ignore")  # RFC 6455 §5.5
    return frame(Opcode.CLOSE, code.to_bytes(2) + short.encode())
