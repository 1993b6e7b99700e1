"""The opening handshake of a WebSocket, from the server's side (RFC 6455 §4.2). No I/O."""

import re
from base64 import b64decode, b64encode
from hashlib import sha1
from http import HTTPStatus

from millstream_api.wire.http1 import Headers, Refused

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_TOKEN = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")


def accept_value(headers: Headers) -> bytes:
    """The Sec-WebSocket-Accept that answers a request. Raises Refused where it is not one that can be answered."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    if found.get(b"sec-websocket-version") != [b"13"]:
        version = {"Sec-WebSocket-Version": "13"}
        raise Refused(HTTPStatus.UPGRADE_REQUIRED, "This server speaks version 13 of WebSocket.", version)
    keys = found.get(b"sec-websocket-key", [])
    try:
        good = len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16
    except ValueError:
        good = False
    if not good:
        raise Refused(HTTPStatus.BAD_REQUEST, "A handshake has one Sec-WebSocket-Key: 16 bytes in base64.")
    return b64encode(sha1(keys[0] + GUID).digest())


def offered_protocols(headers: Headers) -> list[str]:
    """The subprotocols in the client's order. Characters that none may contain are left out, so that a key that comes
    as one may be padded with `=`.
    """
    values = [value.decode("latin-1") for name, value in headers if name == b"sec-websocket-protocol"]
    return [token for item in ",".join(values).split(",") if (token := _NO_TOKEN.sub("", item))]
