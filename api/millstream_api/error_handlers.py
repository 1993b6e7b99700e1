"""Every error of the API as a problem: the framework's own, and those that were not expected."""

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
    errors = validation_errors({**item, "loc": item["loc"][1:]} for item in error.errors())
    return Problem("invalid_params", f"{sentence(errors)}.", errors)
