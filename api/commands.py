"""What a client can ask for, whatever the transport: each command checks, asks the store, and answers or raises a
Problem.
"""

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import to_json

from api.relay import Relay
from api.settings import ApiSettings
from shared.catalog import Catalog
from shared.errors import Problem, StoreUnavailable
from shared.jobs import Page, Snapshot
from shared.messages import Attach, Cancel, Submit, read_cursor
from shared.store import NewJob, Store, Submitted

T = TypeVar("T", Snapshot, Page)
REFRESH_S = 0.2  # an unknown name looks at the store again, at most this often


@dataclass(slots=True)
class Commands:
    settings: ApiSettings
    store: Store
    relay: Relay
    catalog: Catalog = field(default_factory=Catalog)
    draining: bool = False
    _refreshed: float = 0.0

    async def submit(self, owner: str, request: Submit, job: str, *, follow: bool = True) -> Submitted:
        """Accept a job under the id `job`. `follow`: this node wants to hear of it."""
        if self.draining:
            raise Problem(
                "draining", "This server is restarting; connect again and repeat the request.", retry_after_s=1
            )
        await self._know(request.analysis)
        entry = self.catalog.find(request.analysis)
        entry.check(request.params)
        attempts = request.max_attempts or entry.max_attempts
        new = NewJob(
            id=job,
            analysis=entry.name,
            body=_body(entry.name, request.params),
            queue=entry.queue,
            priority=request.priority,
            owner=owner,
            max_attempts=attempts or self.settings.max_attempts,
            retry=attempts is not None,
            timeout_s=request.timeout_s or entry.timeout_s,
            delay_s=request.delay_s,
            key=request.key or "",
            fingerprint=_fingerprint(request) if request.key else "",
            node=self.relay.node if follow else "",
            terminal_only=request.events == "terminal",
        )
        try:
            return await self.store.submit(new)
        except StoreUnavailable:
            raise unavailable() from None

    async def get(self, owner: str, job: str) -> Snapshot:
        try:
            snapshot = await self.store.snapshot(job, owner)
        except StoreUnavailable:
            raise unavailable() from None
        return _found(job, snapshot)

    async def cancel(self, owner: str, request: Cancel) -> Snapshot:
        try:
            snapshot = await self.store.cancel(request.job, owner, request.reason)
        except StoreUnavailable:
            raise unavailable() from None
        return _found(request.job, snapshot)

    async def attach(self, owner: str, request: Attach) -> Page:
        """Make this node hear of a job; the page has no events yet, but says whether the log holds the cursor."""
        after = read_cursor(request.after)
        terminal_only = request.events == "terminal"
        try:
            page = await self.store.attach(
                request.job, after, owner=owner, node=self.relay.node, terminal_only=terminal_only, limit=0
            )
        except StoreUnavailable:
            raise unavailable() from None
        return _found(request.job, page)

    async def analyses(self) -> list[dict[str, Any]]:
        await self.refresh()
        return [entry.as_dict() for entry in self.catalog.entries.values()]

    async def _know(self, analysis: str) -> None:
        """Look again at what workers advertise when a name is not known here."""
        if analysis not in self.catalog.entries and time.monotonic() - self._refreshed > REFRESH_S:
            await self.refresh()

    async def refresh(self) -> None:
        self._refreshed = time.monotonic()
        with suppress(StoreUnavailable):
            self.catalog.update(await self.store.analyses())


def unavailable() -> Problem:
    return Problem("store_unavailable", "The store cannot be reached at the moment. Try again.", retry_after_s=1)


def _found(job: str, found: T | None) -> T:
    if found is None:
        raise Problem("job_not_found", f"There is no job {job[:80]!r}, or it is not yours, or it is no longer kept.")
    return found


def _body(analysis: str, params: dict[str, Any]) -> bytes:
    """The job as arq writes it (see worker/body.py)."""
    return b'{"t":null,"f":%b,"a":[],"k":%b,"et":%d}' % (
        to_json(analysis),
        to_json(params),
        time.time_ns() // 1_000_000,
    )


def _fingerprint(request: Submit) -> str:
    """What must be the same when a key is used again."""
    fields = request.model_dump(include={"analysis", "params", "timeout_s", "max_attempts", "priority", "delay_s"})
    return hashlib.sha256(repr(_sorted(fields)).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((key, _sorted(item)) for key, item in value.items())
    return [_sorted(item) for item in value] if isinstance(value, list) else value
