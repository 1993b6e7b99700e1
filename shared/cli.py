"""The command `millstream`."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from shared.demo import tour
from shared.embedded import NoStore
from shared.supervisor import CannotRun, Supervisor

app = App(
    name="millstream",
    help="Durable analysis jobs over WebSocket and HTTP: live progress, partial results, nothing lost.",
    help_epilogue="Settings are environment variables MILLSTREAM_*, or lines of a .env file; "
    "'millstream api --help' and 'millstream worker --help' list them.",
    help_format="plaintext",
)

Host = Annotated[str, Parameter(help="the address to listen on")]
Port = Annotated[int, Parameter(help="the port to listen on")]
Workers = Annotated[int, Parameter(help="how many workers to run")]
Redis = Annotated[str | None, Parameter(help="a store that runs already, instead of an embedded one")]
Data = Annotated[Path, Parameter(help="the directory whose files are served; the embedded store lives in it, hidden")]


@app.command
def up(
    *, port: Port = 8000, host: Host = "127.0.0.1", workers: Workers = 2, redis: Redis = None, data: Data = Path("data")
) -> int:
    """Run everything on this machine: an embedded store, an API, workers. Ctrl-C drains and ends it."""
    return asyncio.run(_run(Supervisor(host, port, workers, data, redis)))


@app.command
def demo(
    *,
    port: Port = 8000,
    workers: Workers = 2,
    data: Data = Path("data"),
    exit: Annotated[
        bool, Parameter(help="end after the tour, with 0 when all went well and 1 otherwise", negative="")
    ] = False,
) -> int:
    """Run everything, and a tour of the main job on real text over real sockets."""
    supervisor = Supervisor("127.0.0.1", port, max(2, workers), data, settings={"MILLSTREAM_LEASE_S": "2"})
    return asyncio.run(_run(supervisor, lambda: tour(supervisor), exit_after=exit))


@app.command(help_flags=[], version_flags=[])
def api(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run one API process; 'millstream api --help' lists its settings."""
    os.execv(sys.executable, [sys.executable, "-m", "api", *arguments])


@app.command(help_flags=[], version_flags=[])
def worker(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run one worker; 'millstream worker --help' lists its settings."""
    os.execv(sys.executable, [sys.executable, "-m", "worker", *arguments])


async def _run(
    supervisor: Supervisor, after_start: Callable[[], Awaitable[bool]] | None = None, *, exit_after: bool = False
) -> int:
    """Run until a signal, or until `after_start` has ended. Returns the exit code."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            supervisor.kill()
            supervisor.say("ended at once")
            os._exit(1)
        supervisor.say("draining; once more ends it at once")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    code = 0
    try:
        await supervisor.start()
        running = [asyncio.create_task(supervisor.run()), asyncio.create_task(stop.wait())]
        if after_start:
            touring = asyncio.ensure_future(after_start())
            await asyncio.wait([touring, *running], return_when=asyncio.FIRST_COMPLETED)
            code = 0 if touring.done() and touring.result() else 1
        if not exit_after:
            supervisor.say(f"running at {supervisor.url}; Ctrl-C drains and ends it")
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running[0].done():
            running[0].result()
    except (CannotRun, NoStore) as error:
        print(error, file=sys.stderr)
        code = 2
    finally:
        await supervisor.stop()
    return code


def main() -> None:
    sys.exit(app())
