"""The command `millstream`."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from pydantic import ValidationError

from millstream.apikeys import BadKeyFile, Key, Scope, change_keys, check_owner, new_key, read_keys
from millstream.command.demo import tour
from millstream.command.supervisor import CannotRun, Supervisor
from millstream.settings import Settings, explain
from millstream.store.embedded import NoStore


def installed_version() -> str:
    try:
        return version("millstream")
    except PackageNotFoundError:
        return "unknown: this source tree is not installed"


app = App(
    name="millstream",
    version=installed_version,
    help="Durable analysis jobs over WebSocket and HTTP: live progress, partial results, nothing lost.",
    help_epilogue="Settings are environment variables MILLSTREAM_*, or lines of a .env file; "
    "'millstream api --help' and 'millstream worker --help' list them.",
    help_format="plaintext",
)

Host = Annotated[str, Parameter(help="the address to listen on")]
Port = Annotated[int, Parameter(help="the port to listen on; 0: one that is free")]
Workers = Annotated[int, Parameter(help="how many workers to run")]
Redis = Annotated[str | None, Parameter(help="URL of a running store, instead of an embedded one")]
Data = Annotated[
    Path | None,
    Parameter(
        help="the directory whose files are served; also holds the embedded store's data (.store) "
        "[default: MILLSTREAM_DATA_DIR, or data]"
    ),
]


@app.command
def up(
    *, port: Port = 8000, host: Host = "127.0.0.1", workers: Workers = 2, redis: Redis = None, data: Data = None
) -> int:
    """Run everything on this machine: an embedded store, an API, workers. Ctrl-C drains and stops it."""
    return asyncio.run(_run(Supervisor(host, port, workers, _data_dir(data), redis)))


@app.command
def demo(
    *,
    port: Port = 8000,
    workers: Workers = 2,
    data: Data = None,
    exit: Annotated[
        bool, Parameter(help="stop after the tour, with exit code 0 if all checks passed, else 1", negative="")
    ] = False,
) -> int:
    """Run everything, and a tour of the main job on real text over real sockets."""
    supervisor = Supervisor(
        "127.0.0.1",
        port,
        max(2, workers),
        _data_dir(data),
        settings={"MILLSTREAM_LEASE_S": "2", "MILLSTREAM_LOG_LEVEL": "warning"},
    )
    return asyncio.run(_run(supervisor, lambda: tour(supervisor), exit_after=exit))


@app.command(help_flags=[], version_flags=[])
def api(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run one API process; 'millstream api --help' lists its settings."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "millstream_api", *arguments])


@app.command(help_flags=[], version_flags=[])
def worker(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Run one worker; 'millstream worker --help' lists its settings."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "millstream_worker", *arguments])


keys = App(name="keys", help="Manage API keys: who may use a server, and for what.", help_format="plaintext")
app.command(keys)
KeyFile = Annotated[Path, Parameter(name="--file", env_var="MILLSTREAM_API_KEYS_FILE", help="the file of keys")]


@keys.command(name="new")
def keys_new(
    name: Annotated[str, Parameter(help="the owner of jobs submitted with it; several keys may share one")],
    *,
    scope: Annotated[list[Scope], Parameter(help="what it may be used for (repeatable)", negative="")],
    days: Annotated[int | None, Parameter(help="days until it expires (absent: it never does)")] = None,
    file: KeyFile = Path("keys.json"),
) -> int:
    """Make a key and show it, once. Servers that read the file accept it within a second."""
    try:
        check_owner(name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    text, key = new_key(name, scope, timedelta(days=days) if days else None)
    return _change_keys(file, lambda known: [*known, key], f"{text}\n\nKey {key.id} of {name}; it is not shown again.")


@keys.command(name="list")
def keys_list(*, file: KeyFile = Path("keys.json")) -> int:
    """List the keys."""
    try:
        for key in read_keys(file):
            until = f"until {key.expires}" if key.expires else "no expiry"
            print(f"{key.id}  {key.owner:<20} {','.join(key.scopes):<30} {until}")
    except BadKeyFile as error:
        print(error, file=sys.stderr)
        return 2
    return 0


@keys.command(name="revoke")
def keys_revoke(
    id: Annotated[str, Parameter(help="as 'keys list' shows it")], *, file: KeyFile = Path("keys.json")
) -> int:
    """Revoke a key; servers notice within a second."""

    def without(known: list[Key]) -> list[Key]:
        if all(key.id != id for key in known):
            raise BadKeyFile(f"There is no key {id!r} in {file}.")
        return [key for key in known if key.id != id]

    return _change_keys(file, without, f"Key {id} is revoked.")


def _change_keys(file: Path, change: Callable[[list[Key]], list[Key]], done: str) -> int:
    try:
        change_keys(file, change)
    except (BadKeyFile, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(done)
    return 0


def _data_dir(given: Path | None) -> Path:
    """The directory that was given, or else the setting's."""
    try:
        return given or Settings().data_dir
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        raise SystemExit(2) from None


async def _run(
    supervisor: Supervisor, after_start: Callable[[], Awaitable[bool]] | None = None, *, exit_after: bool = False
) -> int:
    """Run until a signal, or until `after_start` has ended. Returns the exit code."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            supervisor.kill()
            supervisor.say("Stopped.")
            os._exit(1)
        supervisor.say("Draining. Press Ctrl-C again to stop immediately.")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    code = 0
    stopping, starting = asyncio.create_task(stop.wait()), asyncio.create_task(supervisor.start())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            while not starting.done():  # wait_for() of Python 3.11, which redis-py connects under, can swallow a cancel
                starting.cancel()
                await asyncio.wait([starting], timeout=0.1)
            return 1 if after_start else 0
        starting.result()
        running = [asyncio.create_task(supervisor.run()), stopping]
        if after_start:
            touring = asyncio.ensure_future(after_start())
            await asyncio.wait([touring, *running], return_when=asyncio.FIRST_COMPLETED)
            code = 0 if touring.done() and touring.result() else 1
        if not exit_after:
            supervisor.say(f"running at {supervisor.url}; press Ctrl-C to drain and stop")
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running[0].done():
            running[0].result()
    except (CannotRun, NoStore) as error:
        print(error, file=sys.stderr)
        code = 2
    finally:
        await supervisor.stop()
    return code
