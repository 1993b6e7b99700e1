"""What can be set for the API."""

from pathlib import Path

from pydantic import Field

from millstream.settings import Settings


class ApiSettings(Settings):
    streams: int = Field(5000, ge=1, description="files sent at a time; the next is answered with 503")
    ranges: int = Field(32, ge=1, description="ranges in one request; a header with more is ignored")
    send_timeout_s: float = Field(60, gt=0, description="a client that reads nothing of a file for so long is dropped")
    follow_s: float = Field(0.25, gt=0, description="how often a followed file is looked at, in seconds")
    upload_bytes: int = Field(10 * 1024**3, ge=1, description="bytes in one uploaded file")
    upload_life_s: float = Field(
        86_400, gt=0, description="how long an unfinished resumable upload is kept, in seconds"
    )
    max_body_bytes: int = Field(1024 * 1024, ge=1024, description="bytes in one frame or request body")
    head_bytes: int = Field(
        64 * 1024, ge=1024, description="bytes of a request's first line and headers; more is refused with 431"
    )
    connections: int = Field(
        20_000, ge=1, description="sockets open at a time; the next is told to come back later (1013)"
    )
    connection_in_flight: int = Field(1000, ge=1, description="jobs of one socket that may wait or run")
    reader_events: int = Field(256, ge=1, description="events held for one reader before it reads from the log instead")
    reader_bytes: int = Field(
        1024 * 1024, ge=1024, description="bytes held for one reader before it reads from the log"
    )
    max_attempts: int = Field(
        3, ge=1, description="attempts of a job where nothing else is said; only lost workers cost one"
    )
    check_s: float = Field(
        3,
        gt=0,
        description="how often the ends of followed logs are compared with the store, and jobs looked for that waited "
        "longer than they may, in seconds",
    )
    cors_origins: str = Field("", description="browser origins that may call the HTTP interface, comma-separated")
    api_keys_file: Path | None = Field(None, description="the keys that may use this server; not set: anybody may")
    insecure: bool = Field(False, description="listen on a public address although anybody may use the server")
    wait_s: float = Field(60, ge=0, description="the longest that Prefer: wait is honoured, in seconds")
    drain_s: float = Field(10, gt=0, description="on SIGTERM, how long open sockets and streams have to end")
    reconnect_ms: int = Field(
        2000, ge=0, description="a draining server tells its clients to reconnect within this time"
    )
    origins: str = Field("", description="browser origins that may open a socket beside the same one, comma-separated")
