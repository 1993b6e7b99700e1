"""`python -m api`: run one API process."""

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import ValidationError

from api.server import make_server
from api.settings import ApiSettings
from shared.settings import explain, settings_table
from shared.telemetry import set_up_logging

app = App(
    name="millstream api",
    help="Run one API process: WebSocket at /ws, HTTP beside it, until SIGTERM.",
    help_epilogue="Settings (environment or .env):\n\n" + settings_table(ApiSettings),
    help_format="plaintext",
    version_flags=[],
)


@app.default
def api(
    *,
    host: Annotated[str, Parameter(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="the port to listen on")] = 8000,
    redis: Annotated[str | None, Parameter(help="the store; overrides MILLSTREAM_REDIS_URL")] = None,
) -> int:
    given: dict[str, Any] = {} if redis is None else {"redis_url": redis}
    try:
        settings = ApiSettings(**given)
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        return 2
    set_up_logging(settings.log_level, tier="api")
    make_server(settings, host, port).run()
    return 0


if __name__ == "__main__":
    sys.exit(app())
