"""SHA-256 digests of files (RFC 9530), computed in threads of their own once for each state of a file, and cached."""

import asyncio
import hashlib
import os
import threading
from base64 import b64encode
from collections import OrderedDict
from dataclasses import dataclass

from millstream_api.files.conditions import State
from millstream_api.files.threads import Threads

CACHED = 10_000
_BLOCK = 1024 * 1024


@dataclass(slots=True)
class _Computation:
    """A digest that `waiting` requests wait for. `abandoned` tells its thread that there are none any more."""

    task: asyncio.Task[bytes | None]
    abandoned: threading.Event
    waiting: int = 0


class Digests:
    """Caches the digests of the CACHED states of files that were requested last. At most `threads` are computed at the
    same time, the others wait for their turn.
    """

    def __init__(self, threads: int) -> None:
        self._cache: OrderedDict[State, bytes] = OrderedDict()
        self._computing: dict[State, _Computation] = {}
        self._threads = Threads("digest", threads)
        self._turns = asyncio.Semaphore(threads)

    async def sha256(self, file: int, state: State) -> bytes | None:
        """The digest of an open file in this state; None when the file has changed. Requests for the same state share
        one computation, which ends when the last of them is cancelled.
        """
        if cached := self._cache.get(state):
            self._cache.move_to_end(state)
            return cached
        found = self._computing.get(state)
        if found is None:
            abandoned = threading.Event()
            task = asyncio.create_task(self._compute(os.dup(file), state, abandoned))
            found = self._computing[state] = _Computation(task, abandoned)
        found.waiting += 1
        try:
            return await asyncio.shield(found.task)
        finally:
            found.waiting -= 1
            if not found.waiting:
                del self._computing[state]
                found.abandoned.set()
                found.task.cancel()

    async def _compute(self, file: int, state: State, abandoned: threading.Event) -> bytes | None:
        """Compute a digest, and close the file."""
        try:
            async with self._turns:
                digest = await self._threads.run(_sha256, file, state, abandoned)
        finally:
            os.close(file)
        if digest is not None:
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


def _sha256(file: int, state: State, abandoned: threading.Event) -> bytes | None:
    """The digest of as many bytes as the state says, which are what is sent; None when the file is in another state at
    the end, or once the computation is abandoned.
    """
    digest = hashlib.sha256()
    offset = 0
    while offset < state.size:
        block = os.pread(file, min(_BLOCK, state.size - offset), offset)
        if not block or abandoned.is_set():
            return None
        digest.update(block)
        offset += len(block)
    return digest.digest() if State.of(os.fstat(file)) == state else None
