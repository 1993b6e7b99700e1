"""`GET /metrics`: what this process counts, and what the store knows of the whole fleet, in Prometheus' format.

Things are counted where they happen, in plain integers, and read here on request. Every API process reports the same
figures of the fleet (workers, queues): take the maximum over them, not the sum.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from millstream.background import Background
from millstream.protocol.errors import Problem
from millstream_api.files.sending import Traffic
from millstream_api.jobs.commands import Commands, Fleet
from millstream_api.jobs.websocket import Sockets
from millstream_api.negotiation import most_wanted
from millstream_api.wire.population import Population

FORMATS = ("text/plain", "application/openmetrics-text")
STORE_S = 2  # how long the store may take to tell of the fleet
Values = float | Mapping[Any, float]  # one value, or one by label (a tuple: by labels)


@dataclass(frozen=True, slots=True)
class Sources:
    """What is counted in this process."""

    commands: Commands
    sockets: Sockets
    traffic: Traffic
    population: Population
    background: Background


async def exposition(sources: Sources, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that an Accept header asks for, and its media type."""
    fleet: Fleet | None = None
    try:
        async with asyncio.timeout(STORE_S):
            fleet = await sources.commands.fleet()
    except (Problem, TimeoutError):
        pass  # which is one of the metrics
    registry = CollectorRegistry()
    registry.register(_Read([*_of_this_process(sources), *_of_the_fleet(fleet)]))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    # Not of the header itself: there are versions that it stumbles over.
    encode, media_type = choose_encoder(most_wanted(accept, FORMATS))
    return encode(registry), media_type


@dataclass(eq=False)
class _Read(Collector):
    """Metrics that have been read already."""

    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        return self.metrics


def _of_this_process(sources: Sources) -> Iterator[Metric]:
    commands, traffic = sources.commands, sources.traffic
    relay = commands.relay
    yield _gauge("connections", "Connections of HTTP and WebSocket clients that are open.", len(sources.population))
    yield _counter("connections_refused", "Connections beyond a limit.", sources.population.refused)
    yield _gauge("sockets", "WebSockets that are open.", sources.sockets.count(), "protocol")
    yield _counter("submissions", "Jobs submitted here, by what came of it.", commands.submissions, "outcome")
    yield _gauge("followed_jobs", "Jobs that have a follower in this process.", len(relay.hub.followers))
    yield _counter("events_relayed", "Events that came from the store to this process.", relay.events)
    background = sources.background
    yield _counter("background_failures", "Failed runs of background tasks.", background.failures, "task")
    yield _gauge("background_failing", "Runs in a row that a background task has failed.", background.failing, "task")
    yield _gauge("draining", "1 while this process is about to end.", commands.draining.is_set())
    yield _gauge("file_streams", "File streams that are open.", traffic.open)
    yield _counter("file_streams_opened", "File streams that were ever opened.", traffic.streams)
    yield _counter("file_sent_bytes", "Bytes of files that were sent.", traffic.bytes_sent)


def _of_the_fleet(fleet: Fleet | None) -> Iterator[Metric]:
    yield _gauge("store_up", "1 when the store answers.", fleet is not None)
    if fleet is None:
        return
    depths = {(queue.name, name): depth for queue in fleet.queues for name, depth in queue.by_priority.items()}
    yield _gauge("queue_depth", "Jobs that are due and wait.", depths, "queue", "priority")
    for field, name, text in (
        ("running", "queue_running", "Jobs that run."),
        ("delayed", "queue_delayed", "Jobs that are not due yet: delayed, or waiting for a retry."),
        ("oldest_age_s", "queue_oldest_seconds", "How long the first in line has waited."),
    ):
        yield _gauge(name, text, {queue.name: getattr(queue, field) for queue in fleet.queues}, "queue")
    for field, name, text in (
        ("slots", "worker_slots", "Jobs that a worker can run side by side."),
        ("running", "worker_running", "Jobs that a worker runs."),
        ("rss", "worker_resident_memory_bytes", "Resident memory of a worker."),
    ):
        yield _gauge(name, text, {(w.queue, w.worker): getattr(w, field) for w in fleet.workers}, "queue", "worker")
    ended = {(w.queue, w.worker, how): n for w in fleet.workers for how, n in w.ended.items()}
    failures = {(w.queue, w.worker, task): n for w in fleet.workers for task, n in w.failures.items()}
    yield _counter(
        "worker_background_failures", "Failed runs of a worker's background tasks.", failures, "queue", "worker", "task"
    )
    yield _counter("worker_attempts", "Attempts that a worker has ended.", ended, "queue", "worker", "outcome")


def _gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"millstream_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"millstream_{name}", text, labels=labels), values)


def _filled(metric: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    by_labels = values if isinstance(values, Mapping) else {(): values}
    for labels, value in by_labels.items():
        metric.add_metric((labels,) if isinstance(labels, str) else labels, value)
    return metric
