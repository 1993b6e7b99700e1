"""Which hosts this server answers for; a request for another one gets 421 (RFC 9110 §15.5.20).

Without keys, whoever reaches the server may use it. A web page reaches it too: it has its own name resolve to this
machine (DNS rebinding), and to the browser its requests are of the same origin. Only their `Host` is the page's.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from millstream_api.problems import plain_problem
from millstream_api.settings import ApiSettings

HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([\w.-]+?)\.?)(?::\d*)?", re.ASCII | re.IGNORECASE)
MAX_HOST_CHARS = 300  # a name has at most 253


def is_loopback(host: str) -> bool:
    """Does only this machine reach it?"""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_answered(header: str, listed: Collection[str]) -> bool:
    """Is a request with this `Host` answered? `listed`: more names (`*.x`: every name below x) and addresses."""
    found = HOST.fullmatch(header)
    if found is None:
        return False
    host = (found[1] or found[2]).lower()
    above = (host[at.start() :] for at in re.finditer(r"\.", host))
    return is_loopback(host) or host in listed or any(f"*{suffix}" in {"*.localhost", *listed} for suffix in above)


def answering_hosts(app: ASGIApp, settings: ApiSettings) -> ASGIApp:
    """Wrap an app, so that it answers for this machine's own names and those of the settings; for every name where
    keys are needed or `insecure` is set, and no names are.
    """
    if not settings.hosts and (settings.api_keys_file or settings.insecure):
        return app
    listed = frozenset(settings.hosts.split(","))

    @lru_cache(maxsize=256)
    def answered(header: bytes) -> bool:
        return is_answered(header.decode("latin-1"), listed)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"host" and not (len(value) <= MAX_HOST_CHARS and answered(value)):
                detail = (
                    f"This server does not answer for {value[:100].decode('latin-1')!r}, only for localhost and what "
                    "MILLSTREAM_HOSTS lists."
                )
                await plain_problem(421, "Misdirected Request", scope["path"], detail)(scope, receive, send)
                return
        await app(scope, receive, send)

    return wrapped
