"""What can be set for the API."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from millstream.settings import Settings

#: The first parts of the API's own paths: none may be a root path's, which is told from them by its beginning.
FIRST_PARTS = {
    "analyses", "async_route", "asyncapi", "asyncapi.json", "docs", "files", "healthz", "jobs", "metrics",
    "openapi.json", "problems", "queues", "readyz", "stream", "streams", "uploads", "workers", "ws",
}  # fmt: skip


class ApiSettings(Settings):
    streams: int = Field(5000, ge=1, description="concurrent file streams; the next one is answered with 503")
    ranges: int = Field(32, ge=1, description="ranges in one request; a header with more is ignored")
    send_timeout_s: float = Field(
        60, gt=0, description="a client that reads nothing of a file for this many seconds is disconnected"
    )
    field_bytes: int = Field(
        16 * 1024,
        ge=1024,
        description="bytes of one header, or of the query, of a request for files; more is refused with 431 or 414",
    )
    text_charset: str = Field(
        "utf-8",
        pattern=r"^[A-Za-z0-9!#$%&'+^_`{}~-]*$",  # RFC 2978 §2.3
        description="the charset that text files are in, as Content-Type tells it; empty: it tells none",
    )
    digest_threads: int = Field(2, ge=1, description="digests (Want-Repr-Digest) that are computed at the same time")
    listings: int = Field(16, ge=1, description="concurrent listings of files; the next one is answered with 503")
    listing_threads: int = Field(2, ge=1, description="threads that read directories for listings")
    follow_s: float = Field(0.25, gt=0, description="seconds between two checks of a followed file")
    upload_bytes: int = Field(10 * 1024**3, ge=1, description="bytes in one uploaded file")
    uploads: int = Field(256, ge=1, description="concurrent uploads; the next one is answered with 503")
    upload_threads: int = Field(8, ge=1, description="threads that write uploads to the disk")
    upload_life_s: float = Field(86_400, gt=0, description="seconds that an unfinished resumable upload is kept")
    owner_uploads: int = Field(
        1000, ge=1, description="unfinished resumable uploads of one owner; the next one is refused with 429"
    )
    owner_upload_bytes: int = Field(
        100 * 1024**3,
        ge=1,
        description="bytes that the unfinished resumable uploads of one owner announce together; more get 507",
    )
    max_body_bytes: int = Field(1024 * 1024, ge=1024, description="bytes in one frame or request body")
    json_values: int = Field(
        50_000, ge=100, description="JSON values and names of members in one frame of millstream.v1 or request body"
    )
    batch: int = Field(100, ge=1, description="requests in one JSON-RPC batch")
    head_bytes: int = Field(
        64 * 1024, ge=1024, description="bytes of a request's first line and headers; more is refused with 431"
    )
    head_fields: int = Field(1000, ge=16, description="headers of a request; more is refused with 431")
    fragments: int = Field(4096, ge=16, description="frames that one message may come in; more closes the socket")
    head_s: float = Field(
        20, gt=0, description="seconds for a request's first line and headers, from its first byte or the connection on"
    )
    body_s: float = Field(60, gt=0, description="seconds without a byte of an expected body; it is refused with 408")
    idle_s: float = Field(75, gt=0, description="seconds that a connection is kept open for its next request")
    total_connections: int = Field(
        25_000, ge=1, description="connections of HTTP and WebSocket clients; beyond it only /healthz is answered"
    )
    address_connections: int = Field(
        2000, ge=1, description="connections of one address, trusted proxies excepted; the next is refused with 429"
    )
    connections: int = Field(
        20_000, ge=1, description="open sockets; the next one is closed with 1013 (try again later)"
    )
    connection_in_flight: int = Field(1000, ge=1, description="jobs of one socket that may wait or run")
    reader_events: int = Field(256, ge=1, description="events held for one reader before it reads from the log instead")
    reader_bytes: int = Field(
        1024 * 1024, ge=1024, description="bytes held for one reader before it reads from the log"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="maximum attempts per job unless the analysis or the submit sets it; by default only attempts "
        "lost with their worker are repeated",
    )
    check_s: float = Field(
        3,
        gt=0,
        description="seconds between two sweeps: for missed final events, and for expired jobs",
    )
    cors_origins: str = Field("", description="origins whose pages may call the HTTP API, comma-separated")
    api_keys_file: Path | None = Field(
        None, description="the file of API keys; not set: every client may do everything"
    )
    api_keys_unreadable_s: float = Field(
        60, ge=0, description="seconds that the last known keys still count when their file can no longer be read"
    )
    insecure: bool = Field(False, description="allow listening on a public address without API keys")
    wait_s: float = Field(
        50,
        ge=0,
        description="the longest wait that Prefer: wait is granted, in seconds: less than a proxy's usual minute",
    )
    heartbeat_s: float = Field(15, gt=0, description="seconds between two signs of life on a quiet stream of events")
    drain_s: float = Field(10, gt=0, description="on SIGTERM, seconds that open sockets and streams have to end")
    reconnect_ms: int = Field(
        2000, ge=0, description="a draining server tells its clients to reconnect within this time"
    )
    origins: str = Field(
        "", description="additional origins allowed to open a WebSocket (same origin always is), comma-separated"
    )
    hosts: str = Field(
        "",
        description="host names and addresses in `Host` that are answered, beside this machine's own; comma-separated, "
        "*.x for every name below x; not set: those alone, but all with API keys or MILLSTREAM_INSECURE",
    )
    root_path: str = Field("", description="the path below which a proxy publishes the API, such as /millstream")
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, "
        "comma-separated",
    )

    def is_trusted(self, address: str) -> bool:
        """Is it a trusted proxy's address?"""
        networks = map(ip_network, _listed(self.trusted_proxies))
        try:
            return any(ip_address(address) in network for network in networks)
        except ValueError:
            return False

    @field_validator("origins", "cors_origins")
    @classmethod
    def _origins(cls, text: str, info: ValidationInfo) -> str:
        return ",".join(_origin(item, any_counts=info.field_name == "cors_origins") for item in _listed(text))

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, text: str) -> str:
        return ",".join(map(_host, _listed(text)))

    @field_validator("root_path")
    @classmethod
    def _root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
            raise ValueError("a path is expected, such as /millstream: of letters, digits and - . _ ~")
        first = path[1:].partition("/")[0]
        if first in FIRST_PARTS:
            raise ValueError(f"the API has paths of its own that begin with /{first}: choose another")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _trusted_proxies(cls, text: str) -> str:
        for network in _listed(text):
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}: addresses and networks are expected, such as 10.0.0.0/8") from None
        return ",".join(_listed(text))


def _listed(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]


def _origin(text: str, *, any_counts: bool) -> str:
    """An origin as browsers send it (RFC 6454 §6.2). Raises ValueError for what none would be equal to."""
    if text == "null" or (text == "*" and any_counts):
        return text
    if text == "*":
        raise ValueError("* counts for MILLSTREAM_CORS_ORIGINS only: list the origins whose pages may open a WebSocket")
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", text)
    if found is None:
        raise ValueError(f"{text}: browsers send scheme://host or scheme://host:port, in lower case")
    if (found[1], found[3]) in (("http", ":80"), ("https", ":443")):
        raise ValueError(f"{text}: browsers leave out the usual port, and send {found[1]}://{found[2]}")
    return text


def _host(text: str) -> str:
    """A host as `Host` has it, without a port. Raises ValueError."""
    host = text.lower().removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(host))
    except ValueError:
        if re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
            return host
    raise ValueError(f"{text} is not a host: names and addresses are expected, without scheme and port")
