"""Digests of files (RFC 9530, sha-256): computed once for each state of a file, in a thread, and kept in memory."""

import asyncio
import hashlib
import os
from base64 import b64encode
from collections import OrderedDict

KEPT = 10_000
_BLOCK = 1024 * 1024


class Digests:
    """Keeps the digests of the KEPT states of files that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._computing: dict[str, asyncio.Task[bytes]] = {}

    async def sha256(self, file: int, state: str) -> bytes:
        """The digest of an open file whose ETag is `state`."""
        if kept := self._kept.get(state):
            self._kept.move_to_end(state)
            return kept
        task = self._computing.get(state)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(_computed, os.dup(file)))
            self._computing[state] = task
            task.add_done_callback(lambda _: self._computing.pop(state, None))
        digest = await asyncio.shield(task)
        self._kept[state] = digest
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return digest


def wants_sha256(header: str | None) -> bool:
    """Does a Want-Repr-Digest (RFC 9530 §4) ask for sha-256?"""
    if header is None:
        return False
    for item in header.split(","):
        name, _, weight = item.strip().partition("=")
        if name.strip().lower() == "sha-256":
            return weight.strip() != "0"
    return False


def field(digest: bytes) -> str:
    """As a dictionary member of Repr-Digest."""
    return f"sha-256=:{b64encode(digest).decode()}:"


def _computed(file: int) -> bytes:
    digest = hashlib.sha256()
    offset = 0
    try:
        while block := os.pread(file, _BLOCK, offset):
            digest.update(block)
            offset += len(block)
    finally:
        os.close(file)
    return digest.digest()
