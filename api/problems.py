"""Problems as HTTP answers (RFC 9457): the framework's own errors too."""

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shared.errors import Problem


def problem_response(problem: Problem, instance: str | None = None) -> Response:
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    body = to_json(problem.document(instance))
    return Response(body, problem.kind.status, headers, media_type="application/problem+json")


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of this app a problem."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return problem_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        document = {
            "type": "about:blank", "title": error.detail, "status": error.status_code, "instance": request.url.path
        }  # fmt: skip
        return Response(to_json(document), error.status_code, error.headers, media_type="application/problem+json")

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        errors = [{"pointer": "/" + "/".join(map(str, item["loc"])), "detail": item["msg"]} for item in error.errors()]
        text = "; ".join(f"{item['pointer'][1:]}: {item['detail']}" for item in errors[:5])
        return problem_response(Problem("invalid_params", f"{text}.", errors), request.url.path)
