"""The parts of the docs that are made from tables and commands: `make docs` writes them, the tests compare them.

A part stands in a page between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import App, Parameter
from pydantic import BaseModel

from millstream.command import main
from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES
from millstream.protocol.event_types import EVENT_TYPES
from millstream.protocol.jobs import TRANSITIONS, Status
from millstream.settings import Settings, shown_default
from millstream.store import keys
from millstream.store.scripts import load_scripts
from millstream_api.__main__ import api
from millstream_api.jobs.methods import METHODS
from millstream_api.jobs.schemas import Snapshot
from millstream_api.settings import ApiSettings
from millstream_worker.__main__ import worker
from millstream_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *others = rows
    lines = [head, ("---",) * len(head), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def events() -> str:
    rows = [(f"`{name}`", members(kind.data), ends(kind.summary, kind.terminal)) for name, kind in EVENT_TYPES.items()]
    return table(("type", "data", "when"), *rows)


def ends(summary: str, terminal: bool) -> str:
    return f"terminal: {summary}" if terminal else summary


def members(model: Any) -> str:
    """The members of an object, those that may be absent with a question mark."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return "any JSON value"
    names = (name if field.is_required() else f"{name}?" for name, field in model.model_fields.items())
    return f"`{{{', '.join(names)}}}`"


def methods() -> str:
    rows = [("method", "params", "result", "what it does")]
    for method in METHODS.values():
        names = [
            f"`{name}`" + ("" if field.is_required() else "?") for name, field in method.params.model_fields.items()
        ]
        rows.append((f"`{method.name}`", ", ".join(names), result(method.result), method.summary))
    return table(*rows)


def choices(annotation: Any) -> str:
    listed = ", ".join(f"`{value}`" for value in get_args(annotation))
    return f" ({listed})" if get_origin(annotation) is Literal else ""


def result(shape: Any) -> str:
    if get_origin(shape) is list:
        return f"a list of {members(get_args(shape)[0])}"
    if issubclass(shape, Snapshot):
        more = [f"`{name}`" for name in shape.model_fields if name not in Snapshot.model_fields]
        return " and ".join(["the snapshot", *more])
    return members(shape)


def commands(app: App) -> str:
    """The commands of the command, or of a group of them."""
    names = [name for name in app if not name.startswith("-")]
    rows = [(f"`{' '.join([*app.name, name])}`", app[name].help.partition("\n")[0]) for name in names]
    return table(("command", "what it does"), *rows)


def errors() -> str:
    return table(
        ("slug", "code", "HTTP", "title", "cause"),
        *((f"`{slug}`", str(p.code), str(p.status), p.title, p.cause) for slug, p in PROBLEM_TYPES.items()),
    )


def job_failures() -> str:
    rows = ((f"`{slug}`", str(p.status), p.title, p.cause) for slug, p in JOB_FAILURES.items())
    return table(("slug", "HTTP", "title", "cause"), *rows)


def settings(tier: type[Settings], *, common: bool) -> str:
    rows = [
        (f"`MILLSTREAM_{name.upper()}`", field.description or "", shown_default(field.default))
        for name, field in tier.model_fields.items()
        if (name in Settings.model_fields) == common
    ]
    return table(("setting", "meaning", "default"), *rows)


def states() -> str:
    arrows = [f"    {before} --> {after}" for before, following in TRANSITIONS.items() for after in sorted(following)]
    final = [f"    {status} --> [*]" for status in Status if not TRANSITIONS[status]]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> queued", *arrows, *final, "```", ""])


def scripts() -> str:
    rows = []
    for name, script in load_scripts().items():
        head = script.text.partition(f"-- {name}: ")[2].partition("\n-- ")[0]
        summary = re.sub(r"\n-- ", " ", head).partition(". ")[0].rstrip(".")
        rows.append((f"`{name}`", summary))
    return table(("script", "what it does"), *rows)


def keys_table() -> str:
    return "".join(f"{line}\n" for line in (keys.__doc__ or "").splitlines() if line.startswith("|"))


def options(command: Callable[..., Any]) -> str:
    """The arguments of a command, in the words of its --help."""
    hints = get_type_hints(command, include_extras=True)
    rows = [("argument", "meaning", "default")]
    for name, parameter in inspect.signature(command).parameters.items():
        (about,) = (item for item in hints[name].__metadata__ if isinstance(item, Parameter))
        option = f"--{name}" if parameter.kind is parameter.KEYWORD_ONLY else name.upper()
        default = "required" if parameter.default is parameter.empty else shown_default(parameter.default)
        rows.append((f"`{next(iter(about.name or ()), option)}`", about.help or "", default))
    return f"{inspect.getdoc(command)}\n\n{table(*rows)}"


PARTS: dict[str, Callable[[], str]] = {
    "events": events,
    "methods": methods,
    "errors": errors,
    "job-failures": job_failures,
    "settings-common": partial(settings, Settings, common=True),
    "settings-api": partial(settings, ApiSettings, common=False),
    "settings-worker": partial(settings, WorkerSettings, common=False),
    "states": states,
    "scripts": scripts,
    "keys": keys_table,
    "help-millstream": partial(commands, main.app),
    "help-keys": partial(commands, main.keys),
    "help-up": partial(options, main.up),
    "help-demo": partial(options, main.demo),
    "help-keys-new": partial(options, main.keys_new),
    "help-keys-list": partial(options, main.keys_list),
    "help-keys-revoke": partial(options, main.keys_revoke),
    "help-api": partial(options, api),
    "help-worker": partial(options, worker),
}


def pages() -> Iterator[tuple[Path, str, str]]:
    """Each page that has such a part, as it stands and as it should stand."""
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path.exists() and PART.search(text := path.read_text()):
            yield path, text, PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[4], text)


def write() -> None:
    for path, text, wanted in pages():
        if text != wanted:
            path.write_text(wanted)
            print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    write()
