"""A proxy in front of a real store that makes it answer as a store in trouble does.

async with fault_proxy(valkey) as proxy:
    store = await Store(proxy.url, …).open(10)
    fault = proxy.inject("append", "OOM command not allowed", after=True)
    …
    proxy.heal()
"""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from millstream.store.scripts import load_scripts
from tests.processes import Process, until

SCRIPTS = {script.sha: name for name, script in load_scripts().items()}
ANY = "*"


@dataclass
class Fault:
    """Each command of this name (that of a script, or of Redis in capitals, or ANY) gets an error for an answer:
    before the store carries it out, or after. `times`: to so many of them (None: until the proxy is healed).
    """

    command: str
    error: str
    after: bool
    times: int | None
    met: int = 0  # how many commands have been answered so

    def meets(self, command: str) -> bool:
        if self.command not in (ANY, command) or self.times == self.met:
            return False
        self.met += 1
        return True

    async def seen(self, times: int = 1) -> None:
        async def met() -> bool:
            return self.met >= times

        await until(met, what=f"{self.command} to be answered with {self.error}")


@dataclass
class FaultProxy:
    """`url` is where it answers. `commands` are the names of those that came, in their order; `errors`
    counts the store's own by their first word.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    links: list["Link"] = field(default_factory=list)

    def inject(self, command: str, error: str, *, after: bool = False, times: int | None = None) -> Fault:
        self.faults.append(fault := Fault(command, error, after, times))
        return fault

    def heal(self) -> None:
        self.faults.clear()

    def swallow(self, command: str) -> None:
        """The connections on which this command has come stay open, and nothing comes through any more."""
        links = [link for link in self.links if command in link.commands and not link.swallowed]
        assert links, f"{command} has not come"
        for link in links:
            link.swallowed = True

    async def came(self, command: str, times: int) -> None:
        async def enough() -> bool:
            return self.commands.count(command) >= times

        await until(enough, what=f"{command} to come {times} times")


@dataclass
class Link:
    """One connection. `owed`: for each command that waits for its answer, the error that takes the place of the
    store's, whether the store has been asked at all, or None for the store's own answer.
    """

    proxy: FaultProxy
    to_store: asyncio.StreamWriter
    to_client: asyncio.StreamWriter
    commands: set[str] = field(default_factory=set)
    owed: deque[tuple[bytes, bool] | None] = field(default_factory=deque)
    swallowed: bool = False

    async def requests(self, stream: asyncio.StreamReader) -> None:
        async for request in values(stream):
            command = name_of(request)
            self.commands.add(command)
            self.proxy.commands.append(command)
            if self.swallowed:
                continue
            fault = next((fault for fault in self.proxy.faults if fault.meets(command)), None)
            if fault:
                self.owed.append((f"-{fault.error}\r\n".encode(), fault.after))
            elif "SUBSCRIBE" not in self.commands:  # what comes on a connection that listens is not counted
                self.owed.append(None)
            if fault is None or fault.after:
                self.to_store.write(request)
            self.answer_refused()

    async def replies(self, stream: asyncio.StreamReader) -> None:
        async for reply in values(stream):
            if reply.startswith(b"-"):
                self.proxy.errors[reply[1:].split()[0].decode()] += 1
            if self.swallowed:
                continue
            instead = self.owed.popleft() if self.owed else None
            self.to_client.write(instead[0] if instead else reply)
            self.answer_refused()

    def answer_refused(self) -> None:
        """What the store was not asked is answered when its turn comes."""
        while self.owed and (instead := self.owed[0]) and not instead[1]:
            self.to_client.write(instead[0])
            self.owed.popleft()


def name_of(request: bytes) -> str:
    words = request.split(b"\r\n", 5)
    command = words[2].decode().upper()
    if command == "EVALSHA":
        return SCRIPTS.get(words[4].decode(), command)
    if command == "EVAL":
        length = int(words[3][1:])
        begin = request.index(words[3]) + len(words[3]) + 2
        return SCRIPTS.get(hashlib.sha1(request[begin : begin + length]).hexdigest(), command)
    return command


async def values(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The RESP values that come, each in its own bytes."""
    data = b""
    while more := await stream.read(262_144):
        data += more
        while (end := end_of(data, 0)) is not None:
            yield data[:end]
            data = data[end:]


def end_of(data: bytes, at: int) -> int | None:
    """Where the RESP value that begins at `at` ends; None when not all of it has come."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return None
    kind, end = data[at : at + 1], line + 2
    if kind == b"$":
        length = int(data[at + 1 : line])
        end += length + 2 if length >= 0 else 0
        return end if end <= len(data) else None
    for _ in range(int(data[at + 1 : line]) if kind == b"*" else 0):
        after = end_of(data, end)
        if after is None:
            return None
        end = after
    return end


@asynccontextmanager
async def fault_proxy(store: Process) -> AsyncIterator[FaultProxy]:
    address, _, number = store.url.removeprefix("redis://").rpartition("/")
    host, _, port = address.rpartition(":")
    proxy, tasks = FaultProxy(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_store, to_store = await asyncio.open_connection(host, int(port))
        link = Link(proxy, to_store, writer)
        proxy.links.append(link)
        ways = {asyncio.create_task(link.requests(reader)), asyncio.create_task(link.replies(from_store))}
        tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, to_store):
            end.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/{number}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
