"""Problems as HTTP responses (RFC 9457), and their descriptions in OpenAPI."""

import math
from typing import Any
from urllib.parse import quote

import structlog
from pydantic_core import to_json
from starlette.responses import Response

from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES, Problem

log = structlog.get_logger("millstream.api")


def problem_response(problem: Problem, instance: str | None = None) -> Response:
    headers = {**problem.headers}
    if problem.slug == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    body = to_json(problem.document(quote(instance) if instance else None))
    return Response(body, problem.type.status, headers, media_type="application/problem+json")


def plain_problem(
    status: int, title: str, instance: str, detail: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """A problem of type about:blank (RFC 9457 §4.2.1): the HTTP status says it all, so it has no page."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail or f"{title}."}
    body = to_json({**document, "instance": quote(instance)})
    return Response(body, status, headers, media_type="application/problem+json")


def problems(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """The problems a route may answer with, for its OpenAPI description."""
    described: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = PROBLEM_TYPES.get(slug) or JOB_FAILURES[slug]
        before = described.get(kind.status, {}).get("description")
        text = f"`{slug}`: {kind.title}"
        described[kind.status] = {
            "description": f"{before}; {text}" if before else text,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
    return described
