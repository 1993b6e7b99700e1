"""The HTTP API of the commands: jobs, their events, analyses, workers, queues."""

import asyncio
import math
import re
from contextlib import suppress
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BeforeValidator
from pydantic_core import from_json, to_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from millstream.apikeys import Principal
from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES, Problem
from millstream.protocol.fleet import AnalysisInfo, Heartbeat, QueueStats
from millstream.protocol.jobs import Status
from millstream.protocol.messages import Attach, Cancel, Events, Submit
from millstream.protocol.reading import read_json, read_params
from millstream.store.store import Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.schemas import Snapshot
from millstream_api.jobs.streams import JSON_LINES, SSE, Format, Stream, StreamResponse, reads_no_more
from millstream_api.negotiation import most_wanted
from millstream_api.problems import problems
from millstream_api.wire.backpressure import wait_for_disconnect


class JobId(Convertor[str]):
    """A job's id in a path. That of a stock arq client may hold slashes; what ends in one, or as the paths below a job
    do, is none.
    """

    regex = r"(?:[^/]+|[\s\S]*[^/](?<!/events)(?<!/result))"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("job_id", JobId())
router = APIRouter(tags=["jobs"])


def commands_of(request: Request) -> Commands:
    commands: Commands = request.app.state.commands
    return commands


def who_asks(request: Request) -> Principal:
    """Whose request this is. Raises Problem unauthorized."""
    return commands_of(request).keys.authenticate(request.headers.get("authorization"))


async def one_submit(
    request: Request,
    idempotency_key: Annotated[str | None, Header(description="serves as `key`", max_length=200)] = None,
) -> Submit:
    """The body, with the key that a header may give. Raises Problem: payload_too_large, or what is wrong with it.

    FastAPI does not read it: its JSON has NaN and lone surrogates, and who asks is to be known before it is read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem("invalid_request", "Send the body with Content-Type: application/json.")
    settings = commands_of(request).settings
    written = await _read(request, settings.max_body_bytes)
    body = read_params(Submit, read_json(written, settings.json_values, what="body"), "POST /jobs")
    if idempotency_key is None:
        return body
    key = idempotency_key.strip().strip('"')
    if not key or (body.key is not None and body.key != key):
        wrong = "it must not be empty, nor differ from the body's key"
        errors = [{"pointer": "/idempotency-key", "detail": wrong}]
        raise Problem("invalid_params", f"Idempotency-Key: {wrong}.", errors)
    return body.model_copy(update={"key": key})


async def _read(request: Request, limit: int) -> bytes:
    """The request's body. Raises Problem: payload_too_large as soon as it is known to be, parse_error when the body
    is not as long as Content-Length says.
    """
    declared = request.headers.get("content-length", "")
    too_large = Problem("payload_too_large", f"The body is over the limit of {limit} bytes.")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise Problem("parse_error", "The connection closed before the whole body arrived.") from None
    if declared.isdecimal() and len(body) != int(declared) and "transfer-encoding" not in request.headers:
        raise Problem("parse_error", f"The body has {len(body)} bytes, Content-Length announced {declared}.")
    return bytes(body)


Who = Annotated[Principal, Depends(who_asks)]


def unless_empty(default: object) -> BeforeValidator:
    """A parameter without a value counts as absent."""
    return BeforeValidator(lambda value: default if value == "" else value)


Do = Annotated[Commands, Depends(commands_of)]
JobPath = Annotated[str, Path(description="a job's id", min_length=1, max_length=512)]
STREAMS: dict[str, Format] = {
    "text/event-stream": SSE,
    "application/jsonl": JSON_LINES,
    "application/x-ndjson": replace(JSON_LINES, media_type="application/x-ndjson"),
}
STREAM_CONTENT = {
    "text/event-stream": {"schema": {"type": "string"}},
    "application/jsonl": {"schema": {"$ref": "#/components/schemas/JobEvent"}},
}
GENERAL = ("unauthorized", "forbidden", "store_unavailable")
ADMISSION = tuple(slug for slug, problem_type in PROBLEM_TYPES.items() if problem_type.on_submit)


@router.post(
    "/jobs",
    status_code=202,
    response_model=Snapshot,
    responses={
        200: {
            "model": Snapshot,
            "description": "the finished job (`Prefer: wait`), or its events as a stream (`Accept`)",
            "content": STREAM_CONTENT,
        },
        **problems(*GENERAL, *ADMISSION),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Submit"}}},
        }
    },
)
async def submit(
    request: Request,
    who: Who,
    commands: Do,
    body: Annotated[Submit, Depends(one_submit)],
    prefer: Annotated[
        list[str] | None, Header(description="`wait=N`: answer when the job has ended, or after N seconds")
    ] = None,
) -> Response:
    """Submit a job. Once answered it runs, whatever happens."""
    if stream_format := _streamed(request, "application/json"):
        stream = Stream(commands)
        submitted = await stream.submit(who, body)
        return StreamResponse(stream, stream_format, _submitted_headers(commands, submitted))
    wait_s = min(_wait_s(", ".join(prefer or [])), commands.settings.wait_s)
    if wait_s <= 0:
        submitted = await commands.submit(who, body, commands.stores.new_job_id(body), follow=False)
        snapshot = await commands.snapshot(who, submitted.job)
        return _json(snapshot.as_json(), 202, _submitted_headers(commands, submitted))
    who.require("read")
    stream = Stream(commands)
    submitted = await stream.submit(who, body.model_copy(update={"events": "terminal"}))
    await _wait(request, stream, wait_s, stays=body.on_disconnect == "continue")
    commands.keys.require(who, "read")
    snapshot = await commands.snapshot(who, submitted.job)
    headers = {**_submitted_headers(commands, submitted), "Preference-Applied": f"wait={math.floor(wait_s)}"}
    return _json(snapshot.as_json(), 200 if snapshot.terminal else 202, headers)


async def _wait(request: Request, stream: Stream, wait_s: float, *, stays: bool) -> None:
    """Wait for the end of a stream's job. A client that leaves is waited for no longer, unless it `stays`: it closed
    its side of the connection only, and wants its job to go on.
    """
    ending = asyncio.ensure_future(stream.end())
    leaving = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if stays and not reads_no_more(request.scope):
                    await asyncio.wait({ending})
    finally:
        left = leaving.done()
        ending.cancel()
        leaving.cancel()
        await stream.close(left=left)


@router.get("/jobs", response_model=list[Snapshot], responses=problems(*GENERAL, "invalid_params"))
async def jobs(
    request: Request,
    who: Who,
    commands: Do,
    status: Annotated[Status | None, Query(description="only jobs of this status"), unless_empty(None)] = None,
    analysis: Annotated[str, Query(description="only jobs of this analysis", max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=500), unless_empty(50)] = 50,
    before: Annotated[str, Query(description="the id of the last job of the page before", max_length=512)] = "",
) -> Response:
    """The owner's jobs, newest first. `Link: rel="next"` names the next page, while there may be one; a page may be
    empty though more follow.
    """
    found, last = await commands.jobs(who, status=status or "", analysis=analysis, limit=limit, before=before)
    headers = {}
    if last:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "before"]
        headers["Link"] = f'</jobs?{urlencode([*query, ("before", last)])}>; rel="next"'
    return _json(b"[%b]" % b",".join(snapshot.as_json() for snapshot in found), 200, headers)


@router.get(
    "/jobs/{job:job_id}/events",
    response_class=Response,
    responses={
        200: {"content": STREAM_CONTENT, "description": "the events, old ones first, live ones after"},
        204: {"description": "the job has ended, and its last event was read: no need to come back"},
        **problems(*GENERAL, "job_not_found", "invalid_params"),
    },
)
async def events(
    request: Request,
    who: Who,
    commands: Do,
    job: JobPath,
    after: Annotated[str | None, Query(description="a cursor; absent: from the start")] = None,
    follow: Annotated[bool, Query(description="false: only what is there now")] = True,
    events: Annotated[Events, Query(description="`terminal`: only the last")] = "all",
    last_event_id: Annotated[str | None, Header(description="as `after`, which it overrides")] = None,
) -> Response:
    """A job's events, as server-sent events or JSON Lines; ends after the terminal event."""
    stream, cursor = Stream(commands), last_event_id or after or None
    attached = await stream.attach(who, Attach(job=job, after=cursor, events=events))
    if attached.snapshot.terminal and attached.snapshot.cursor == cursor:
        await stream.close(left=False)
        return Response(status_code=204)
    if not follow:
        stream.stop_following()
    return StreamResponse(stream, _streamed(request) or SSE)


@router.get(
    "/jobs/{job:job_id}/result",
    responses={
        200: {"content": {"application/json": {"schema": {}}}, "description": "the bare result"},
        **problems(*GENERAL, "job_not_found", "invalid_params", "result_not_ready", *JOB_FAILURES),
    },
)
async def result(who: Who, commands: Do, job: JobPath) -> Response:
    """The result alone; a failure is a problem."""
    snapshot = await commands.get(who, job)
    if not snapshot.terminal:
        raise Problem(
            "result_not_ready", f"The job is {snapshot.status}; try again when it has ended.", retry_after_s=1
        )
    if snapshot.status is Status.SUCCEEDED:
        return _json(snapshot.result)
    status = snapshot.status
    error = from_json(snapshot.error) or {"code": status, "message": f"The job was {status}; its last event says why."}
    code = error["code"] if error["code"] in (*JOB_FAILURES, "invalid_params") else "analysis_error"
    raise Problem(code, error["message"], error.get("errors", []))


@router.get(
    "/jobs/{job:job_id}", response_model=Snapshot, responses=problems(*GENERAL, "job_not_found", "invalid_params")
)
async def job(who: Who, commands: Do, job: JobPath) -> Response:
    """The current state of a job."""
    return _json((await commands.get(who, job)).as_json())


@router.delete(
    "/jobs/{job:job_id}",
    status_code=202,
    response_model=Snapshot,
    responses=problems(*GENERAL, "job_not_found", "invalid_params"),
)
async def cancel(
    who: Who, commands: Do, job: JobPath, reason: Annotated[str | None, Query(max_length=1000)] = None
) -> Response:
    """Cancel a job, queued or running. Cancelling one that has ended is no error."""
    return _json((await commands.cancel(who, Cancel(job=job, reason=reason))).as_json(), 202)


@router.get("/analyses", response_model=list[AnalysisInfo], responses=problems(*GENERAL))
async def analyses(_: Who, commands: Do) -> Response:
    """List the available analyses."""
    return _json(to_json(await commands.analyses()))


@router.get(
    "/analyses/{name}",
    response_model=AnalysisInfo,
    responses=problems(*GENERAL, "unknown_analysis", "no_workers", "invalid_params"),
)
async def analysis(_: Who, commands: Do, name: str) -> Response:
    """One analysis, with the JSON Schemas of its parameters and result."""
    await commands.analyses()
    return _json(to_json(commands.catalog.find(name).as_dict()))


@router.get("/workers", response_model=list[Heartbeat], responses=problems(*GENERAL))
async def workers(who: Who, commands: Do) -> Response:
    """The live workers, by their last heartbeat."""
    who.require("admin")
    return _json(to_json((await commands.fleet()).workers))


@router.get("/queues", response_model=list[QueueStats], responses=problems(*GENERAL))
async def queues(who: Who, commands: Do) -> Response:
    """Queue statistics: waiting, running and delayed jobs of each queue."""
    who.require("admin")
    return _json(to_json((await commands.fleet()).queues))


def _json(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(content, status, headers, media_type="application/json")


def _submitted_headers(commands: Commands, submitted: Submitted) -> dict[str, str]:
    """Where the job is, and how much more may be submitted."""
    return {
        "Location": f"/jobs/{submitted.job}",
        "Vary": "Accept",
        **commands.stores.of(submitted.job).limits.rate_headers(submitted.tokens),
    }


def _wait_s(prefer: str) -> float:
    """The wait of a Prefer header (RFC 7240 §4.3), in seconds; 0 where there is none."""
    found = re.search(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?(?:$|[,;\s])', prefer, re.IGNORECASE)
    return float(found.group(1)) if found else 0.0


def _streamed(request: Request, *others: str) -> Format | None:
    """The stream format that the client prefers (RFC 9110 §12.5.1); None: it prefers one of the others, or none."""
    return STREAMS.get(most_wanted(_listed(request, "accept"), (*others, *STREAMS)))


def _listed(request: Request, name: str) -> str | None:
    """A header that holds a list, whose lines count as one (RFC 9110 §5.3)."""
    return ", ".join(request.headers.getlist(name)) or None
