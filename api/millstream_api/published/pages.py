"""The published interfaces as pages for people. No page needs any other site. `root`: the path below which the API is
published (`MILLSTREAM_ROOT_PATH`).
"""

import re
from html import escape
from typing import Any

from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES, ProblemType
from millstream.protocol.event_types import EVENT_TYPES

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
code { font: 14px/1.45 ui-monospace, monospace; background: #f3f5f7; border-radius: 4px; padding: .1em .3em }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #dde3e8 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem } h3 { font-size: 1rem } a { color: #0b5cad }
h2 code, h3 code { font-size: inherit; font-weight: 600 } table + table { margin-top: 1rem }
td:first-child, th:first-child { width: 30% } td { overflow-wrap: anywhere }
"""


def _page(title: str, body: str, root: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)} · Millstream</title>"
        f"<meta name=viewport content='width=device-width'><link rel=icon href={root}/docs/static/favicon.png>"
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>{body}"
    )


def _prose(text: str) -> str:
    """A sentence as HTML, with what stands in backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _problem_table(root: str) -> str:
    rows = "".join(
        f"<tr><td><a href='{root}/problems/{slug}'><code>{slug}</code></a>"
        f"<td>{kind.status}<td>{kind.code or ''}<td>{escape(kind.title)}"
        for slug, kind in {**PROBLEM_TYPES, **JOB_FAILURES}.items()
    )
    return f"<table><tr><th>Problem<th>HTTP<th>JSON-RPC<th></tr>{rows}</table>"


def problem_list_page(root: str) -> str:
    return _page("Problems", _problem_table(root), root)


def problem_page(slug: str, kind: ProblemType, root: str) -> str:
    """What a kind of problem means, and what to do."""
    code = f", JSON-RPC code {kind.code}" if kind.code else ""
    body = (
        f"<p><code>{slug}</code>: HTTP status {kind.status}{code}</p>"
        f"<h2>Where it comes from</h2><p>{escape(kind.cause)}</p><h2>What to do</h2><p>{escape(kind.cure)}</p>"
        f"<p><a href='{root}/problems'>All problems</a></p>"
    )
    return _page(kind.title, body, root)


def socket_page(document: dict[str, Any], root: str) -> str:
    """The AsyncAPI document, to be read by people."""
    schemas = document["components"]["schemas"]
    parts = [
        f"<p>{escape(document['info']['description'])} As a document: "
        f"<a href='{root}/asyncapi.json'>{root}/asyncapi.json</a>. HTTP: <a href='{root}/docs'>{root}/docs</a>.</p>"
    ]
    for name, operation in document["operations"].items():
        title = escape(operation["title"])
        parts.append(f"<h2 id='{name}'><code>{title}</code></h2><p>{_prose(operation.get('summary', ''))}</p>")
        if operation["action"] == "receive":
            parts.append(_members("Parameter", schemas.get(f"{name}Params", {})))
            parts.append(_members("Result", schemas.get(f"{name}Result", {})))
        else:
            parts.append("<p>Sent by the server.</p>" + _members("Member", schemas.get(name, {})))
    parts.append("<h2>Event data</h2>")
    parts += [
        f"<h3><code>{name}</code></h3>" + _members("Member", schemas[f"{name.capitalize()}Data"])
        for name in EVENT_TYPES
    ]
    return _page("The socket", "".join(parts) + "<h2>Errors</h2>" + _problem_table(root), root)


def _members(label: str, schema: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"<p>{label}: <code>{escape(_type(schema))}</code></p>"
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name in required else ' (optional)'}<td>{escape(_type(member))}"
        f"<td>{_prose(member.get('description', ''))}"
        for name, member in schema["properties"].items()
    )
    return f"<table><tr><th>{label}<th>Type<th></tr>{rows}</table>" if rows else f"<p>{label}: none</p>"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any JSON"))
