"""The API below a path of its own (`MILLSTREAM_ROOT_PATH`), behind a proxy that has other things beside it.

Inside, paths are as without it: it is taken off each request's path, unless the proxy has done so, and put before the
paths in each response's Location, Link and problem document. Pages and specifications are made with it.
"""

from pydantic_core import from_json, to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH_IN_HEADER = {b"location": b"/", b"link": b"</"}  # how one begins that is a path of this server


def below_prefix(app: ASGIApp, prefix: str) -> ASGIApp:
    """Wrap an app, which is then reached below the prefix, and without it too."""
    raw = prefix.encode()
    if not prefix:
        return app

    def with_prefix(name: bytes, value: bytes) -> tuple[bytes, bytes]:
        begin = PATH_IN_HEADER.get(name)
        return name, value.replace(b"/", raw + b"/", 1) if begin and value.startswith(begin) else value

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        held: Message = {}  # the start of a problem, whose length is not yet known

        async def prefixing(message: Message) -> None:
            nonlocal held
            if message["type"].endswith("http.response.start"):  # or that of a handshake that is refused
                message["headers"] = [with_prefix(*header) for header in message["headers"]]
                if (b"content-type", b"application/problem+json") in message["headers"]:
                    held = message
                    return
            elif held:
                message["body"] = problem_below(prefix, message["body"])
                length = b"%d" % len(message["body"])
                held["headers"] = [(n, length if n == b"content-length" else v) for n, v in held["headers"]]
                await send(held)
                held = {}
            await send(message)

        if (path := scope.get("raw_path", b"")) == raw or path.startswith(raw + b"/"):
            scope = {**scope, "path": scope["path"][len(prefix) :] or "/", "raw_path": path[len(raw) :] or b"/"}
        await app(scope, receive, prefixing)

    return wrapped


def problem_below(prefix: str, body: bytes) -> bytes:
    """A problem document whose type and instance are below the prefix."""
    document = from_json(body)
    below = {name: prefix + document[name] for name in ("type", "instance") if document.get(name, "")[:1] == "/"}
    return to_json(document | below)
