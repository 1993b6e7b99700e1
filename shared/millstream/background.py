"""Background tasks: the one way to run them. Any error of a task is logged and counted, and the task goes on.

background = Background()
background.every(3, "expire jobs", commands.expire)
background.when(relay.catalog_changed, "read the catalog", commands.refresh)
background.once("sweep uploads", lambda: sweep(directory))
...
await background.close()
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from millstream.backoff import backoff_s
from millstream.protocol.errors import StoreUnavailable

log = structlog.get_logger("millstream.background")

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 30.0

Step = Callable[[], Awaitable[object]]


class Health:
    """Which tasks of a process fail. Safe to call from any thread; tasks outside asyncio report here themselves.

    `failures` counts since the start, by task; `failing` has those whose last run failed, and how many runs in a row.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()

    def failed(self, task: str, error: BaseException) -> float:
        """Log and count a failed run. Returns the seconds to pause before the next one."""
        self.failures[task] += 1
        self.failing[task] += 1
        if self.failing[task] == 1:
            log.error("background task failed; it goes on", task=task, exc_info=error)
        return backoff_s(self.failing[task], first_s=FIRST_PAUSE_S, max_s=MAX_PAUSE_S)

    def succeeded(self, task: str) -> None:
        if runs := self.failing.pop(task, 0):
            log.info("background task works again", task=task, failed_runs=runs)


class Background(Health):
    """The background tasks of one process, in its event loop.

    A store that cannot be reached is no failure of a task: it waits its turn, like everything else that needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float, name: str, step: Step) -> None:
        """Run a step now, and again so many seconds after each end of it."""
        self._start(name, step, lambda: asyncio.sleep(seconds))

    def when(self, event: asyncio.Event, name: str, step: Step) -> None:
        """Run a step now, and again whenever the event is set, which is cleared before."""

        async def cleared() -> None:
            event.clear()
            await step()

        self._start(name, cleared, event.wait)

    def once(self, name: str, step: Step) -> None:
        """Run a step until it succeeds."""
        self._start(name, step, None)

    def _start(self, name: str, step: Step, wait: Step | None) -> None:
        self._tasks.append(asyncio.create_task(self._run(name, step, wait), name=name))

    async def _run(self, name: str, step: Step, wait: Step | None) -> None:
        while True:
            try:
                await step()
                self.succeeded(name)
            except StoreUnavailable:
                if wait is None:
                    await asyncio.sleep(FIRST_PAUSE_S)
                    continue
            except Exception as error:
                await asyncio.sleep(self.failed(name, error))
                continue
            if wait is None:
                return
            await wait()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
