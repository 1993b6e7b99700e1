"""Every error of the API as a problem (RFC 9457): our own, the framework's, and unexpected exceptions."""

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millstream.protocol.errors import Problem, sentence, validation_errors
from millstream_api.problems import plain_problem, problem_response
from millstream_api.wire.connection import ClientGone

log = structlog.get_logger("millstream.api")


def answer_with_problems(app: FastAPI) -> None:
    """Register the exception handlers."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return problem_response(error, request.scope["path"])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, headers = request.scope["path"], dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(app, request))
        return plain_problem(error.status_code, str(error.detail), path, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return problem_response(_invalid(error), request.scope["path"])

    app.add_exception_handler(Exception, unexpected)


def has_head(path: str) -> bool:
    """Does this path also answer HEAD? Not the event streams, which would wait for the job to end."""
    return not path.endswith("/events")


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """Every method of a path, for Allow (RFC 9110 §15.5.6); the framework names those of one of its routes only."""
    routes = [route for route in app.router.routes if not isinstance(route, Mount)]
    scopes = {method: {**request.scope, "method": method} for method in ("GET", "POST", "DELETE")}
    found = [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]
    if not found:  # static files
        found = ["GET"]
    return ["HEAD", *found] if "GET" in found and has_head(request.scope["path"]) else found


async def unexpected(request: Request, error: Exception) -> Response:
    """The response to an unexpected error. The server logs the traceback and closes the connection."""
    log.error("request failed", method=request.method, path=request.scope["path"], error=repr(error))
    detail = "Something went wrong here; it has been logged."
    response = problem_response(Problem("internal_error", detail), request.scope["path"])
    response.headers["Connection"] = "close"
    return response


def answer_unexpected_errors(app: ASGIApp) -> ASGIApp:
    """Wrap an app: an unexpected error is answered with a problem, unless the response has started. It is then raised
    again, for the server to log.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noting_start)
        except ClientGone:
            raise
        except Exception as error:
            if not started:
                await (await unexpected(Request(scope), error))(scope, receive, send)
            raise

    return wrapped


def _invalid(error: RequestValidationError) -> Problem:
    """FastAPI's validation errors of a path, a query or a header, worded as on the WebSocket."""
    errors = validation_errors({**item, "loc": item["loc"][1:]} for item in error.errors())
    return Problem("invalid_params", f"{sentence(errors)}.", errors)
