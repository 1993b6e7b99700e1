"""`@analysis`: how a function becomes an analysis.

    from millstream import Context, analysis

    @analysis(timeout=30, max_attempts=3)
    async def top_words(ctx: Context, text: str, n: int = 10) -> list[tuple[str, int]]:
        \"\"\"Count the most frequent words.\"\"\"
        ...
        await ctx.progress(done, total)
        await ctx.emit({"word": word, "count": count})    # a chunk
        return result

Type hints become the JSON Schema, the docstring the description. An async generator is an analysis too: each `yield`
is a chunk, and the result is null unless `ctx.result(value)` was called.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import SchemaError

from millstream.authoring.context import Context
from millstream.protocol.fleet import Advertisement
from millstream.protocol.jobs import PRIORITIES


@dataclass(frozen=True, slots=True)
class Analysis:
    """A registered analysis. `retries`: its author gave `max_attempts`, and so asked for failures to be tried again."""

    name: str
    description: str
    function: Callable[..., Any]
    params: type[BaseModel]
    returns: TypeAdapter[Any]
    timeout_s: float | None
    max_attempts: int | None
    queue: str
    generator: bool

    def advertisement(self, default_timeout_s: float) -> Advertisement:
        """What workers tell the API of it."""
        params_schema = self.params.model_json_schema()
        params_schema.pop("title", None)
        return Advertisement(
            name=self.name,
            description=self.description,
            params_schema=params_schema,
            result_schema=self.returns.json_schema(mode="serialization"),
            timeout_s=self.timeout_s or default_timeout_s,
            max_attempts=self.max_attempts,
            queue=self.queue,
        )


F = TypeVar("F", bound=Callable[..., Any])
MARK = "__millstream_analysis__"


def analysis(
    name: str | None = None,
    *,
    timeout: float | None = None,
    max_attempts: int | None = None,
    queue: str = "default",
) -> Callable[[F], F]:
    """Make an `async def` (a coroutine or an async generator) an analysis.

    `name`: what clients call it (default: the function's name). `timeout`: seconds that one attempt may take
    (default: the worker's). `max_attempts`: with it a failed attempt is tried again until so many were made; without
    it a failure is final, and only attempts that were lost with their worker are made again. `queue`: whose workers
    run it.

    Raises TypeError at once for a function that cannot be an analysis.
    """

    if callable(name):
        raise TypeError(f"{name.__module__}.{name.__qualname__}: write @analysis(), with the parentheses.")

    def register(function: F) -> F:
        setattr(function, MARK, _describe(function, name, timeout, max_attempts, queue))
        return function

    return register


def _describe(
    function: Callable[..., Any], name: str | None, timeout: float | None, max_attempts: int | None, queue: str
) -> Analysis:
    label = f"{function.__module__}.{function.__qualname__}"
    generator = inspect.isasyncgenfunction(function)
    if not (generator or inspect.iscoroutinefunction(function)):
        raise TypeError(
            f"{label} is a plain def. An analysis must be an 'async def' for now: a plain one would stop every other "
            "job of its worker while it computes. Wrap what blocks in 'await asyncio.to_thread(...)'."
        )
    if not inspect.signature(function).parameters:
        raise TypeError(f"{label}: the first parameter must be the context (ctx: Context).")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise TypeError(f"{label}: timeout must be more than 0 seconds, and finite, not {timeout}.")
    if max_attempts is not None and (not isinstance(max_attempts, int) or max_attempts < 1):
        raise TypeError(f"{label}: max_attempts must be 1 or more, not {max_attempts}.")
    if queue in PRIORITIES and queue != "default":
        raise TypeError(f"{label}: a queue cannot be called {queue!r}, which is a priority.")
    try:
        hints = get_type_hints(function, include_extras=True)
        params = _params_model(function, hints, label)
        returned = hints.get("return", Any)
        returns: TypeAdapter[Any] = TypeAdapter(Any if generator else returned)
        returns.json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticUserError, SchemaError, NameError, KeyError, ValueError) as error:
        raise TypeError(f"{label}: its type hints cannot be made a JSON Schema: {error}") from error
    described = Analysis(
        name or function.__name__, inspect.getdoc(function) or "", function, params, returns, timeout, max_attempts,
        queue, generator,
    )  # fmt: skip
    _check_schemas(described, label)
    return described


def _params_model(function: Callable[..., Any], hints: dict[str, Any], label: str) -> type[BaseModel]:
    first, *rest = inspect.signature(function).parameters.values()
    if first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{label}: the first parameter must be the context (ctx: Context).")
    given = hints.get(first.name, Context)
    if given not in (Any, object) and Context not in getattr(given, "__mro__", ()):
        raise TypeError(f"{label}: the first parameter is the context, not {first}: write (ctx: Context, {first}).")
    fields: dict[str, Any] = {}
    for parameter in rest:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_name or parameter.name.startswith("_"):  # pydantic takes such a name for a private one
            raise TypeError(f"{label}: {parameter} cannot be given by name.")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    model: type[BaseModel] = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    model.model_json_schema()
    return model


def _check_schemas(analysis: Analysis, label: str) -> None:
    """Raises TypeError for schemas by which no API could check parameters; authors may have written parts of them."""
    try:
        advertised = Advertisement.model_validate_json(analysis.advertisement(1).model_dump_json())
    except ValueError as error:
        raise TypeError(f"{label}: its schemas cannot be written as JSON: {error}") from error
    try:
        from millstream.protocol.schemas import validator_for
    except ImportError:  # where authors do not have what workers have, the worker checks
        return
    for of, schema in (("parameters", advertised.params_schema), ("result", advertised.result_schema)):
        try:
            validator_for(schema)
        except ValueError as error:
            raise TypeError(f"{label}: the schema of its {of} is not a valid JSON Schema: {error}") from error


def find_analyses(namespace: Any) -> dict[str, Analysis]:
    """The analyses that a module defines or imports, by name. Raises TypeError for two of one name."""
    found: dict[str, Analysis] = {}
    for value in vars(namespace).values():
        described: Analysis | None = getattr(value, MARK, None) if callable(value) else None
        if described is None:
            continue
        if found.get(described.name, described) is not described:
            raise TypeError(f"{namespace.__name__}: two analyses are called {described.name!r}.")
        found[described.name] = described
    return found
