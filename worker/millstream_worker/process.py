"""The process around a worker's event loop. Analyses run in it, so it holds out against what they may do to a process:
end the loop, fork, and leave threads behind.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import uvloop

log = structlog.get_logger("millstream.worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINGER_S = 0.5  # for what analyses have left behind, once the worker has stopped


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a worker to its end. Does not return while it leaves threads behind that do not end: the process ends."""
    keep_signals_to_this_process()
    loop, threads = uvloop.new_event_loop(), ThreadPoolExecutor()
    asyncio.set_event_loop(loop)
    loop.set_default_executor(threads)
    try:
        run_to_end(loop, _and_cancel_rest(main))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    loop.close()
    _end_beside_threads()


def run_to_end(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run a loop until `main` has ended: a `sys.exit()` in any other task or callback, which stops a loop, ends
    nothing but that task.
    """
    task, pid = loop.create_task(main), os.getpid()
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:  # RuntimeError: after loop.stop()
            if os.getpid() != pid:  # a process that an analysis has forked, and that leaves
                os._exit(1)
            if not task.done():
                log.error("an analysis stopped the event loop; it goes on", error=repr(error))
    task.result()


async def _and_cancel_rest(main: Coroutine[Any, Any, None]) -> None:
    try:
        await main
    finally:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=LINGER_S)


def keep_signals_to_this_process() -> None:
    """Python tells an event loop of a signal by a descriptor, which a forked child shares with its parent: one that is
    terminated would tell the worker to stop. From here on a child that is forked is ended by what is sent to it.
    """
    masks = threading.local()

    def before() -> None:  # one that comes while the child has not got so far waits
        masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        in_parent()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _end_beside_threads() -> None:
    """End the process at once where threads or child processes would keep it from ending."""
    until = time.monotonic() + LINGER_S
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join(max(0, until - time.monotonic()))
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing else []
    if not children and not any(thread.is_alive() and not thread.daemon for thread in others):
        return
    log.warning("analyses have left threads or processes behind, which end now")
    for child in children:
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
