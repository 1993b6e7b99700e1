"""`python -m api`: run one API process."""

import resource
import sys
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import ValidationError

from millstream.apikeys import BadKeyFile, read_keys
from millstream.confined_fs import NoDirectory
from millstream.settings import explain, settings_table, warn_of_mistyped
from millstream.telemetry import set_up_logging
from millstream_api.hosts import is_loopback
from millstream_api.server import make_server
from millstream_api.settings import ApiSettings

app = App(
    name="millstream api",
    help_epilogue="Settings (environment or .env):\n\n" + settings_table(ApiSettings),
    help_format="plaintext",
    version_flags=[],
)


OPEN_TO_ALL = """Any client that reaches {host} could use this server, because no keys are set up. Either
  make keys (millstream keys new NAME --scope submit --scope read) and set MILLSTREAM_API_KEYS_FILE,
  or listen on this machine only (--host 127.0.0.1),
  or allow it: MILLSTREAM_INSECURE=true."""

NO_KEYS = """MILLSTREAM_API_KEYS_FILE={file}: there is no such file, and nobody would be let in. Make a first key:
  millstream keys new NAME --scope submit --scope read --file {file}"""


@app.default
def api(
    *,
    host: Annotated[str, Parameter(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="the port to listen on")] = 8000,
    redis: Annotated[str | None, Parameter(help="the store; overrides MILLSTREAM_REDIS_URL")] = None,
) -> int:
    """Run one API process: WebSocket at /ws, HTTP beside it, until SIGTERM."""
    given: dict[str, Any] = {} if redis is None else {"redis_url": redis}
    try:
        settings = ApiSettings(**given)
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        return 2
    if settings.api_keys_file is None and not settings.insecure and not is_loopback(host):
        print(OPEN_TO_ALL.format(host=host), file=sys.stderr)
        return 2
    try:
        if settings.api_keys_file is not None:
            if not settings.api_keys_file.exists():
                raise BadKeyFile(NO_KEYS.format(file=settings.api_keys_file))
            read_keys(settings.api_keys_file)
    except BadKeyFile as error:
        print(error, file=sys.stderr)
        return 2
    set_up_logging(settings.log_level, tier="api")
    warn_of_mistyped(ApiSettings)
    _allow_many_files()
    try:
        server = make_server(settings, host, port)
    except NoDirectory as error:
        print(error, file=sys.stderr)
        return 2
    server.run()
    return 0


def _allow_many_files() -> None:
    """As many open sockets and files as we may have: many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names no limit that it would take
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(app())
