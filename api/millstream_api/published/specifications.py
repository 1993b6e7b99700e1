"""What is published about the interfaces, generated from the models and tables that the code uses: OpenAPI for HTTP,
AsyncAPI 3.0 for the socket, and a page for each, and for each kind of problem. No page needs any other site.
"""

import hashlib
import re
from base64 import b64encode
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES
from millstream.protocol.event_types import EVENT_TYPES
from millstream.protocol.messages import Submit
from millstream_api.jobs.methods import METHODS
from millstream_api.jobs.schemas import NOTIFICATIONS, JobEvent, ProblemDocument
from millstream_api.problems import problems
from millstream_api.published.pages import problem_list_page, problem_page, socket_page

REF = "#/components/schemas/{model}"
ABOUT = """Submit analysis jobs, follow their events, get their results. A job that was accepted runs, whatever happens.

The same can be had over a WebSocket: see [{root}/asyncapi]({root}/asyncapi)."""
PAGE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def publish(app: FastAPI, root: str) -> None:
    """Add the documents and their pages to the app. `root`: the path below which it is published."""
    app.openapi = lambda: _openapi(app, root)  # type: ignore[method-assign]
    app.mount("/docs/static", StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"), name="docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Millstream: HTTP",
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/static/favicon.png",
        )
        return _html(bytes(page.body).decode())

    document = asyncapi(root)

    @app.get("/asyncapi.json", include_in_schema=False)
    async def asyncapi_json() -> JSONResponse:
        return JSONResponse(document)

    @app.get("/asyncapi", include_in_schema=False)
    async def asyncapi_page() -> HTMLResponse:
        return _html(socket_page(document, root))

    @app.get("/problems", include_in_schema=False)
    async def problem_list() -> HTMLResponse:
        return _html(problem_list_page(root))

    @app.get("/problems/{slug}", include_in_schema=False)
    async def problem(slug: str) -> Response:
        kind = PROBLEM_TYPES.get(slug) or JOB_FAILURES.get(slug)
        if kind is None:
            raise HTTPException(404, "Not Found")
        return _html(problem_page(slug, kind, root))


def _html(page: str) -> HTMLResponse:
    """A page that may run and show what is in it or comes from this origin, and that no other page may frame."""
    inline = {
        tag: " ".join(
            f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src 'self' {inline['script']}; style-src 'self' {inline['style']}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, **PAGE_HEADERS})


def _openapi(app: FastAPI, root: str) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the shapes that only streams and errors have."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Millstream",
            version=version("millstream"),
            summary="Durable analysis jobs, live progress, partial results.",
            description=ABOUT.format(root=root),
            routes=app.routes,
            servers=[{"url": root}] if root else None,
        )
        for path in document["paths"].values():
            for operation in path.values():  # FastAPI's summary is the function's name; the first sentence says more
                first, *rest = re.split(r"(?<=[.?]) ", operation["description"], maxsplit=1)
                operation["summary"], operation["description"] = first.removesuffix("."), "".join(rest)
        document["paths"].update(_file_paths())
        document["paths"]["/jobs"]["post"]["responses"]["202"]["headers"] = {
            name: {"schema": {"type": "string"}, "description": text} for name, text in SUBMIT_HEADERS.items()
        }
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for shape in (Submit, ProblemDocument, JobEvent):
            schemas[shape.__name__] = shape.model_json_schema(ref_template=REF)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


SUBMIT_HEADERS = {
    "Location": "the job",
    "Preference-Applied": "the wait that was honoured",
    "RateLimit-Policy": "where there is a rate limit: its quota and window",
    "RateLimit": "what is left of it",
}


TEXT: dict[str, Any] = {"type": "string"}
#: Parameters of the file tier that are not any text.
SCHEMAS: dict[str, dict[str, Any]] = {
    "follow": {"type": "boolean"},
    "offset": {"type": "integer", "minimum": 0},
    "Tus-Resumable": {"const": "1.0.0"},
    "Upload-Length": {"type": "integer", "minimum": 0},
    "Upload-Offset": {"type": "integer", "minimum": 0},
}


def _file_paths() -> dict[str, Any]:
    """The file tier, which is no part of FastAPI's app (see files.py, tus.py)."""
    path = {
        "name": "path",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "may hold slashes",
    }
    content = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}  # by the file's name
    errors: dict[Any, Any] = problems("unauthorized", "forbidden")

    def told(status: str, text: str, *others: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"description": text}
        if status >= "4":
            schema = {"schema": {"$ref": REF.format(model="ProblemDocument")}}
            answer["content"] = {"application/problem+json": schema}
        return {status: answer, **{k: v for other in others for k, v in other.items()}}

    def operation(summary: str, responses: dict[str, Any], *names: tuple[str, str]) -> dict[str, Any]:
        parameters = [
            {"name": name, "in": where, "schema": SCHEMAS.get(name, TEXT), "required": name == "Tus-Resumable"}
            for name, where in names
        ]
        keyed = {str(status): answer for status, answer in [*errors.items(), *responses.items()]}
        return {"tags": ["files"], "summary": summary, "parameters": parameters, "responses": keyed}

    missing, refused = told("404", "not there, or never served"), told("412", "a condition does not hold")
    conditions = [("If-Match", "header"), ("If-None-Match", "header")]
    readable = {
        "200": {"description": "the file", **content},
        "206": {"description": "the parts asked for", **content},
        **told("304", "as the client has it", missing, refused),
        **told("416", "none of the ranges can be had", told("422", "the offset is no number of bytes")),
        **told("503", "too many streams are open"),
    }
    asked = [
        ("Range", "header"), ("If-Range", "header"), ("If-Modified-Since", "header"), ("If-Unmodified-Since", "header"),
        ("Want-Repr-Digest", "header"), ("follow", "query"), ("offset", "query"), *conditions,
    ]  # fmt: skip
    reading = operation("The file, or parts of it (RFC 9110)", readable, *asked)
    writing = operation(
        "Upload a file: complete, or not there at all",
        told("201", "created", told("204", "replaced"), missing, refused, told("413", "too large"))
        | told("400", "the upload broke, or its digest is wrong", told("415", "Content-Encoding is not accepted"))
        | told("507", "the disk is full"),
        ("Repr-Digest", "header"), ("Content-Digest", "header"), *conditions,
    )  # fmt: skip
    writing["requestBody"] = {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
    deleting = operation("Remove a file", told("204", "removed", missing, refused), *conditions)
    listing = operation(
        "The files whose paths begin with a prefix, as JSON or JSON Lines",
        {
            "200": {
                "description": "path, size, modified, etag of each",
                "content": {"application/json": {}, "application/jsonl": {}, "application/x-ndjson": {}},
            }
        },
        ("prefix", "query"),
    )
    tutorial = operation("The same stream as /files/{path}", readable, ("path", "query"), *asked)
    version, asked_version = told("412", "another version of tus"), ("Tus-Resumable", "header")
    locked = told("423", "another process writes to it")
    kept = {
        **version, **missing, **told("400", "a header is missing or wrong"), **told("413", "too large"),
        **told("460", "the checksum is wrong"), **told("507", "the disk is full"),
    }  # fmt: skip
    begin = operation(
        "Begin a resumable upload (tus 1.0.0)",
        told("201", "Location is where to send it", kept, told("429", "too many are unfinished")),
        asked_version, ("Upload-Length", "header"), ("Upload-Metadata", "header"),
        ("Upload-Checksum", "header"),
    )  # fmt: skip
    more = operation(
        "Send more of an upload; its last byte publishes the file",
        told("204", "Upload-Offset is where to go on", kept, told("409", "the upload is elsewhere, or complete"))
        | told("415", "the content type is another", locked),
        asked_version, ("Upload-Offset", "header"), ("Upload-Checksum", "header"),
    )  # fmt: skip
    more["requestBody"] = {"content": {"application/offset+octet-stream": {"schema": TEXT}}}
    where = operation(
        "How far an upload is", told("200", "Upload-Offset and Upload-Length", version, missing, locked), asked_version
    )
    drop = operation("Drop an upload", told("204", "dropped", version, missing), asked_version)
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
    return {
        "/files/": {"get": listing},
        "/files/{path}": {"parameters": [path], "get": reading, "head": reading, "put": writing, "delete": deleting},
        "/stream/file": {"get": tutorial, "head": tutorial},
        "/uploads": {"post": begin},
        "/uploads/{id}": {"parameters": [id], "head": where, "patch": more, "delete": drop},
    }


def asyncapi(root: str = "") -> dict[str, Any]:
    """The AsyncAPI 3.0 document of `/ws` under `millstream.v1`. `root`: the path below which it is published."""
    schemas = _Schemas()
    messages: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    errors = schemas.add("Error", _error_schema(schemas.of("ProblemDocument", ProblemDocument)))
    messages["error"] = {"name": "error", "title": "An error", "payload": errors}
    for method in METHODS.values():
        name = _camel(method.name)
        request = _request_schema(method.name, schemas.of(f"{name}Params", method.params))
        messages[f"{name}Request"] = {"name": method.name, "title": f"Request {method.name}", "payload": request}
        result = {"type": "object", "properties": {"result": schemas.of(f"{name}Result", method.result), **_ENVELOPE}}
        title = f"Result of {method.name}"
        messages[f"{name}Result"] = {"name": f"{method.name} result", "title": title, "payload": result}
        operations[name] = {
            "action": "receive",
            "title": method.name,
            "summary": method.summary,
            "channel": {"$ref": "#/channels/socket"},
            "messages": [{"$ref": f"#/channels/socket/messages/{name}Request"}],
            "reply": {
                "channel": {"$ref": "#/channels/socket"},
                "messages": [{"$ref": f"#/channels/socket/messages/{m}"} for m in (f"{name}Result", "error")],
            },
        }
    for title, shape in NOTIFICATIONS.items():
        name = _camel(title)
        payload = _request_schema(title, schemas.of(name, shape), notification=True)
        summary = (shape.__doc__ or "").strip().splitlines()[0]
        messages[name] = {"name": title, "title": f"Notification {title}", "summary": summary, "payload": payload}
        operations[name] = {
            "action": "send",
            "title": title,
            "summary": summary,
            "channel": {"$ref": "#/channels/socket"},
            "messages": [{"$ref": f"#/channels/socket/messages/{name}"}],
        }
    for name, event_type in EVENT_TYPES.items():
        schemas.of(f"{name.capitalize()}Data", event_type.data)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Millstream",
            "version": version("millstream"),
            "description": "JSON-RPC 2.0 over the subprotocol millstream.v1: jobs, and their events as they come. "
            "The data of an event of type T has the schema TData.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "socket": {
                "address": f"{root}/ws",
                "title": "The socket",
                "description": "Offer the WebSocket subprotocol millstream.v1. Text frames, each a request or a batch.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas.found},
    }


_ENVELOPE = {"jsonrpc": {"const": "2.0"}, "id": {"type": ["string", "number", "null"]}}


class _Schemas:
    """JSON Schemas by name, with every reference among them."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def of(self, name: str, shape: Any, mode: JsonSchemaMode = "validation") -> dict[str, str]:
        schema = TypeAdapter(shape).json_schema(ref_template=REF, mode=mode, schema_generator=GenerateJsonSchema)
        self.found.update(schema.pop("$defs", {}))
        return self.add(name, schema)

    def add(self, name: str, schema: dict[str, Any]) -> dict[str, str]:
        self.found[name] = schema
        return {"$ref": REF.format(model=name)}


def _request_schema(method: str, params: dict[str, str], *, notification: bool = False) -> dict[str, Any]:
    properties: dict[str, Any] = {"jsonrpc": {"const": "2.0"}, "method": {"const": method}, "params": params}
    if not notification:
        properties["id"] = _ENVELOPE["id"]
    return {"type": "object", "required": ["jsonrpc", "method"], "properties": properties}


def _error_schema(problem: dict[str, str]) -> dict[str, Any]:
    codes = [kind.code for kind in PROBLEM_TYPES.values()]
    error = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"enum": codes}, "message": {"type": "string"}, "data": problem},
    }
    return {"type": "object", "required": ["error"], "properties": {**_ENVELOPE, "error": error}}


def _camel(method: str) -> str:
    return "".join(part.capitalize() for part in method.replace("_", ".").split("."))
