"""`python -m worker`: run one worker."""

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import ValidationError

from millstream.confined_fs import NoDirectory, ServedDirectory
from millstream.settings import explain, settings_table, warn_of_mistyped
from millstream.telemetry import set_up_logging
from millstream_worker.app import alive, serve
from millstream_worker.loading import load_analyses
from millstream_worker.process import run
from millstream_worker.settings import WorkerSettings

app = App(
    name="millstream worker",
    help_epilogue="Settings (environment or .env):\n\n" + settings_table(WorkerSettings),
    help_format="plaintext",
    version_flags=[],
)


@app.default
def worker(
    *,
    redis: Annotated[str | None, Parameter(help="the store; overrides MILLSTREAM_REDIS_URL")] = None,
    analyses: Annotated[
        str | None, Parameter(help="modules or files (./x.py) to load; overrides MILLSTREAM_ANALYSES")
    ] = None,
    check: Annotated[
        bool, Parameter(help="only say whether a worker of this host is alive, by exit code", negative="")
    ] = False,
) -> int:
    """Run one worker: it claims jobs and runs their analyses until SIGTERM."""
    given: dict[str, Any] = {"redis_url": redis, "analyses": analyses}
    try:
        settings = WorkerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        return 2
    if check:
        return alive(settings)
    set_up_logging(settings.log_level, tier="worker")
    warn_of_mistyped(WorkerSettings)
    try:
        found = load_analyses(settings.analyses)
    except (ImportError, TypeError) as error:
        print(f"The analyses cannot be loaded. {error}", file=sys.stderr)
        return 2
    if settings.queue not in (queues := {analysis.queue for analysis in found.values()}):
        print(
            f"MILLSTREAM_QUEUE={settings.queue}: no analysis that is loaded belongs to it. "
            f"There are analyses of: {', '.join(sorted(queues))}.",
            file=sys.stderr,
        )
        return 2
    try:
        ServedDirectory(settings.data_dir).close()
    except NoDirectory as error:
        print(error, file=sys.stderr)
        return 2
    run(serve(settings, found))
    return 0


if __name__ == "__main__":
    sys.exit(app())
