"""All the connections of a process: how many there may be, and which have run out of time."""

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from millstream_api.wire.http1 import Request

RESERVE = 64  # connections beyond the limit, each for one request that costs nothing
RESERVED_TARGETS = frozenset({b"/healthz"})
RESERVED_S = 5  # how long one of them may stay


class Member(Protocol):
    """A connection, as it is counted here."""

    client: tuple[str, int] | None
    deadline: float

    def time_out(self) -> None: ...

    def abort(self) -> None: ...


class Population:
    """`most`: connections at once; beyond it, only what RESERVED_TARGETS names is answered, and the oldest of the
    reserve makes room. `most_of_address`: those of one client's address, unless it is `exempt`, as a proxy is.
    """

    def __init__(
        self, *, most: int, most_of_address: int, exempt: Callable[[str], bool] = lambda address: False
    ) -> None:
        self.refused = 0
        self._most = most
        self._most_of_address = most_of_address
        self._exempt = exempt
        self._open: set[Member] = set()
        self._reserve: dict[Member, None] = {}  # in the order of their coming
        self._of_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open) + len(self._reserve)

    def admit(self, connection: Member) -> bool:
        """Count a new connection. Returns whether its address may have one more."""
        if len(self._open) >= self._most:
            self.refused += 1
            if len(self._reserve) >= RESERVE:
                next(iter(self._reserve)).abort()
            self._reserve[connection] = None
            connection.deadline = monotonic() + RESERVED_S
            return True
        self._open.add(connection)
        if connection.client is None:
            return True
        address = connection.client[0]
        self._of_address[address] += 1
        if self._of_address[address] <= self._most_of_address or self._exempt(address):
            return True
        self.refused += 1
        return False

    def leave(self, connection: Member) -> None:
        if connection in self._reserve:
            del self._reserve[connection]
            return
        self._open.discard(connection)
        if connection.client is not None:
            address = connection.client[0]
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def keeps_alive(self, connection: Member) -> bool:
        """May it have another request after this one?"""
        return connection not in self._reserve

    def refusal(self, connection: Member, request: Request) -> str | None:
        """Why a request is not carried out, if it is not."""
        if connection in self._reserve and request.target not in RESERVED_TARGETS:
            return f"{self._most} connections are open, which is the limit. Try again in a moment."
        return None

    async def sweep(self) -> None:
        """Tell each connection whose deadline has passed; to be called every second or so."""
        now = monotonic()
        for late in [member for group in (self._open, self._reserve) for member in group if member.deadline < now]:
            late.time_out()
