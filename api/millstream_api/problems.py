"""Problems as HTTP answers (RFC 9457): the framework's own errors too."""

import math
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millstream.errors import ENDS, KINDS, Problem, sentence, wrong_members
from millstream_api.backpressure import ClientGone

log = structlog.get_logger("millstream.api")


def problem_response(problem: Problem, instance: str | None = None) -> Response:
    headers = {**problem.headers}
    if problem.slug == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    body = to_json(problem.document(quote(instance) if instance else None))
    return Response(body, problem.kind.status, headers, media_type="application/problem+json")


def plain_problem(
    status: int, title: str, instance: str, detail: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An error that HTTP itself has a status for, and needs no page."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail or f"{title}."}
    body = to_json({**document, "instance": quote(instance)})
    return Response(body, status, headers, media_type="application/problem+json")


def problems(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """How a route's OpenAPI describes the problems that it may answer with."""
    described: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = KINDS.get(slug) or ENDS[slug]
        before = described.get(kind.status, {}).get("description")
        text = f"`{slug}`: {kind.title}"
        described[kind.status] = {
            "description": f"{before}; {text}" if before else text,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
    return described


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of this app a problem."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return problem_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, headers = request.url.path, dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(app, request))
        return plain_problem(error.status_code, str(error.detail), path, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return problem_response(_invalid(error), request.url.path)

    app.add_exception_handler(Exception, unexpected)


def has_head(path: str) -> bool:
    """May GET of this path be asked for by HEAD? Not where it would wait for a job's end."""
    return not path.endswith("/events")


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """Every method that a path has (RFC 9110 §15.5.6); the framework names those of one of its routes only."""
    routes = [route for route in app.router.routes if not isinstance(route, Mount)]
    scopes = {method: {**request.scope, "method": method} for method in ("GET", "POST", "DELETE")}
    found = [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]
    if not found:  # static files
        found = ["GET"]
    return ["HEAD", *found] if "GET" in found and has_head(request.url.path) else found


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer to what nobody thought of. The server logs the traceback, and closes the connection."""
    log.error("request failed", method=request.method, path=request.url.path, error=repr(error))
    detail = "Something went wrong here; it has been logged."
    response = problem_response(Problem("internal_error", detail), request.url.path)
    response.headers["Connection"] = "close"
    return response


def answering_errors(app: ASGIApp) -> ASGIApp:
    """An app whose errors that nobody thought of are answered, while nothing is answered yet. `ClientGone` is none."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def noting(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await app(scope, receive, noting)
        except ClientGone:
            raise
        except Exception as error:
            if not answered:
                await (await unexpected(Request(scope), error))(scope, receive, send)
            raise

    return answering


def _invalid(error: RequestValidationError) -> Problem:
    """What FastAPI found wrong in a path, a query or a header, in the words that the socket uses."""
    errors = wrong_members({**item, "loc": item["loc"][1:]} for item in error.errors())
    return Problem("invalid_params", f"{sentence(errors)}.", errors)
