"""SHA-256 digests of files (RFC 9530), computed in a thread once for each state of a file, and cached."""

import asyncio
import hashlib
import os
from base64 import b64encode
from collections import OrderedDict

CACHED = 10_000
_BLOCK = 1024 * 1024


class Digests:
    """Caches the digests of the CACHED states of files that were requested last."""

    def __init__(self) -> None:
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._computing: dict[str, asyncio.Task[bytes]] = {}

    async def sha256(self, file: int, state: str) -> bytes:
        """The digest of an open file whose ETag is `state`."""
        if cached := self._cache.get(state):
            self._cache.move_to_end(state)
            return cached
        task = self._computing.get(state)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(_compute, os.dup(file)))
            self._computing[state] = task
            task.add_done_callback(lambda _: self._computing.pop(state, None))
        digest = await asyncio.shield(task)
        self._cache[state] = digest
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return digest


def wants_sha256(header: str | None) -> bool:
    """Whether a Want-Repr-Digest header (RFC 9530 §4) asks for sha-256."""
    if header is None:
        return False
    for item in header.split(","):
        name, _, weight = item.strip().partition("=")
        if name.strip().lower() == "sha-256":
            return weight.strip() != "0"
    return False


def field(digest: bytes) -> str:
    """The value of Repr-Digest (a dictionary, RFC 8941 §3.2)."""
    return f"sha-256=:{b64encode(digest).decode()}:"


def _compute(file: int) -> bytes:
    digest = hashlib.sha256()
    offset = 0
    try:
        while block := os.pread(file, _BLOCK, offset):
            digest.update(block)
            offset += len(block)
    finally:
        os.close(file)
    return digest.digest()
