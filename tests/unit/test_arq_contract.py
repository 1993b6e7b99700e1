"""What engine.py and body.py of a worker rely on in arq 0.28. Red means: read what changed in arq first."""

import asyncio
import inspect
import json
from importlib.metadata import version
from typing import Any

import pytest
from arq import jobs
from arq.connections import ArqRedis
from arq.utils import poll
from arq.worker import Worker, func

from millstream_worker.body import Body, arq_result, read_body
from millstream_worker.engine import Engine


def test_the_version_is_the_one_whose_internals_were_read() -> None:
    assert version("arq").split(".")[:2] == ["0", "28"]


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        (Worker.main, "(self) -> None"),
        (Worker._poll_iteration, "(self) -> None"),
        (Worker.run_job, "(self, job_id: str, score: int) -> None"),
        (Worker.close, "(self) -> None"),
        (Worker.async_run, "(self) -> None"),
        (Worker._release_sem_dec_counter_on_complete, "(self) -> None"),
    ],
)
def test_what_is_overridden_or_called_has_the_signature_it_had(method: Any, signature: str) -> None:
    assert str(inspect.signature(method)) == signature


@pytest.mark.parametrize("name", ["main", "_poll_iteration", "run_job", "close"])
def test_what_is_overridden_is_overridden_with_the_same_signature(name: str) -> None:
    ours, theirs = getattr(Engine, name), getattr(Worker, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs) is True


def test_the_engine_overrides_nothing_else_of_arqs_and_hides_none_of_its_attributes() -> None:
    own = {name for name in vars(Engine) if not name.startswith("__")}
    assert own & set(dir(Worker)) == {"main", "_poll_iteration", "run_job", "close"}


@pytest.mark.parametrize(
    ("parameter", "annotation"),
    [
        ("queue_name", "Optional[str]"),
        ("redis_pool", "Optional[arq.connections.ArqRedis]"),
        ("max_jobs", "int"),
        ("poll_delay", "SecondsTimedelta"),
        ("handle_signals", "bool"),
        ("health_check_key", "Optional[str]"),
    ],
)
def test_the_parameters_that_the_engine_passes_are_there(parameter: str, annotation: str) -> None:
    found = inspect.signature(Worker.__init__).parameters[parameter]
    assert found.kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.formatannotation(found.annotation).strip("'") == annotation


async def nothing(ctx: dict[Any, Any]) -> None: ...


class Ticking(Worker):
    """Counts how often arq's own loop comes round, and stops it."""

    ticks = 0

    async def _poll_iteration(self) -> None:
        self.ticks += 1
        if self.ticks == 3:
            raise asyncio.CancelledError


async def test_the_attributes_that_the_engine_uses_are_what_it_takes_them_for() -> None:
    worker = Worker([func(nothing, name="n")], redis_pool=ArqRedis(), max_jobs=7, handle_signals=False)
    assert list(worker.functions) == ["n"]
    assert worker.tasks == {}
    assert (worker.job_counter, worker.max_jobs, worker.allow_pick_jobs, worker.main_task) == (0, 7, True, None)
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (0, 0, 0)
    assert worker.loop is asyncio.get_running_loop()
    for _ in range(8):  # max_jobs + 1
        await worker.sem.acquire()
    assert worker.sem.locked()
    worker.job_counter = 8
    worker._release_sem_dec_counter_on_complete()
    assert (worker.job_counter, worker.sem.locked()) == (7, False)


async def test_arqs_loop_calls_poll_iteration_again_and_again_without_a_delay() -> None:
    found = [delay async for delay in _first(3)]
    assert len(found) == 3
    assert inspect.getsource(Worker.main).count("self._poll_iteration()") == 1
    assert "poll(self.poll_delay_s)" in inspect.getsource(Worker.main)


async def _first(count: int) -> Any:
    async for delay in poll(0):
        yield delay
        count -= 1
        if not count:
            return


def test_a_body_that_arq_writes_is_read() -> None:
    body = jobs.serialize_job("f", (1, "a"), {"k": None}, None, 123, serializer=lambda d: json.dumps(d).encode())
    assert read_body(body) == Body("f", [1, "a"], {"k": None}, 123, packed=False)


def test_a_result_that_we_write_is_read_by_arq() -> None:
    body = Body("f", [1], {"k": 2}, 123_000, packed=False)
    written = arq_result(
        body, id="j", queue="arq:queue", attempt=2, success=True, value={"v": 1}, started_ms=124_000, ended_ms=125_000
    )
    result = jobs.deserialize_result(written, deserializer=json.loads)
    assert (result.function, list(result.args), result.kwargs, result.job_try) == ("f", [1], {"k": 2}, 2)
    assert (result.success, result.result, result.job_id, result.queue_name) == (True, {"v": 1}, "j", "arq:queue")
    assert (result.enqueue_time.timestamp(), result.start_time.timestamp()) == (123, 124)
    assert result.finish_time.timestamp() == 125
