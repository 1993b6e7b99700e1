"""`@analysis`: what its author writes, what becomes of it, and what is refused at once and in words."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Protocol

import pytest
from pydantic import BaseModel, Field, ValidationError

from millstream import Context, analysis
from millstream.authoring.analysis import MARK, Analysis, find_analyses


@dataclass
class Point:
    x: int
    y: float = 0


class Box(BaseModel):
    points: list[Point]


def described(function: Any) -> Analysis:
    found: Analysis = getattr(function, MARK)
    return found


def advertised(function: Any) -> dict[str, Any]:
    return described(function).advertisement(300).model_dump()


@analysis()
async def measure(
    ctx: Context, text: str, top: Annotated[int, Field(ge=1, description="How many.")] = 3, *, box: Box | None = None
) -> list[Point]:
    """Measure a text.

    In some detail.
    """
    return [Point(len(text) * top)]


async def test_the_function_itself_stays_what_it_was() -> None:
    assert await measure(None, "ab", 2) == [Point(4)]  # type: ignore[arg-type]


def test_name_description_and_schemas_come_from_the_function() -> None:
    document = advertised(measure)
    assert (document["name"], document["queue"], document["timeout_s"]) == ("measure", "default", 300)
    assert document["description"] == "Measure a text.\n\nIn some detail."
    assert document["max_attempts"] is None
    schema = document["params_schema"]
    assert (schema["required"], schema["additionalProperties"]) == (["text"], False)
    assert schema["properties"]["text"]["type"] == "string"
    top = schema["properties"]["top"]
    assert (top["type"], top["minimum"], top["default"], top["description"]) == ("integer", 1, 3, "How many.")
    assert {"Box", "Point"} <= set(schema["$defs"])
    result = document["result_schema"]
    assert (result["type"], result["items"]["$ref"]) == ("array", "#/$defs/Point")


def test_params_become_what_the_hints_say() -> None:
    params = described(measure).params.model_validate({"text": "x", "box": {"points": [{"x": 1}]}})
    assert params.model_dump() == {"text": "x", "top": 3, "box": {"points": [{"x": 1, "y": 0}]}}
    assert isinstance(params.box, Box)  # type: ignore[attr-defined]
    for wrong in ({}, {"text": "x", "more": 1}, {"text": "x", "top": 0}, {"text": ["x"]}):
        with pytest.raises(ValidationError):
            described(measure).params.model_validate(wrong)


def test_what_is_set_in_the_decorator_is_advertised() -> None:
    @analysis("text.measure", timeout=2.5, max_attempts=4, queue="gpu")
    async def measured(ctx: Context) -> None: ...

    document = advertised(measured)
    assert (document["name"], document["timeout_s"]) == ("text.measure", 2.5)
    assert (document["max_attempts"], document["queue"], document["description"]) == (4, "gpu", "")


def test_an_async_generator_is_an_analysis_whose_result_may_be_anything() -> None:
    @analysis()
    async def stream(ctx: Context, n: int) -> AsyncIterator[int]:
        yield n

    assert described(stream).generator
    assert not described(measure).generator
    assert advertised(stream)["result_schema"] == {}


def test_hints_may_be_left_out() -> None:
    @analysis()
    async def anything(ctx, value, other=1):  # type: ignore[no-untyped-def]
        return value

    assert advertised(anything)["params_schema"]["required"] == ["value"]


def test_a_plain_def_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(TypeError, match=r"plain is a plain def\. .*'async def'.*asyncio\.to_thread"):

        @analysis()
        def plain(ctx: Context) -> None: ...


def test_a_decorator_without_its_parentheses_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"@analysis\(\)"):

        @analysis  # type: ignore[arg-type]
        async def bare(ctx: Context) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": -1}, "timeout must be more than 0"),
        ({"timeout": float("nan")}, "timeout must be more than 0"),
        ({"timeout": float("inf")}, "timeout must be more than 0"),
        ({"max_attempts": 0}, "max_attempts must be 1 or more"),
        ({"max_attempts": 2.5}, "max_attempts must be 1 or more"),
        ({"queue": "high"}, "'high', which is a priority"),
        ({"queue": "low"}, "'low', which is a priority"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):

        @analysis(**options)
        async def odd(ctx: Context) -> None: ...


async def no_context() -> None: ...
async def context_by_name(*, ctx: Context) -> None: ...
async def any_number(ctx: Context, *texts: str) -> None: ...
async def any_name(ctx: Context, **texts: str) -> None: ...
async def by_place(ctx: Context, text: str, /) -> None: ...
async def unknown_hint(ctx: Context, text: "Nothing") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def no_schema(ctx: Context, module: ModuleType) -> None: ...
async def no_result_schema(ctx: Context) -> Callable[[], int]: ...  # type: ignore[empty-body]
async def text_for_context(text: str) -> None: ...
async def optional_context(ctx: Context | None) -> None: ...
async def underscore(ctx: Context, _text: str) -> None: ...
def extra(**more: Any) -> Any:
    return Annotated[str, Field(json_schema_extra=more)]


BAD_SCHEMAS: dict[str, Any] = {
    "required is not a list": extra(required=True),
    "a pattern that is none": Annotated[str, Field(pattern="(")],
    "a pattern that is none, by hand": extra(pattern="("),
    "a negative length": extra(minLength=-1),
    "a reference to nothing": extra(**{"$ref": "#/$defs/Nothing"}),
    "a reference to elsewhere": extra(**{"$ref": "http://127.0.0.1:9/schema.json"}),
    "what JSON cannot write": extra(example=object()),
    "what no reader could read": extra(example=10**5000),
}


@pytest.mark.parametrize("hint", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
@pytest.mark.parametrize("of", ["parameters", "result"])
def test_what_makes_no_valid_json_schema_is_refused_where_it_is_written(hint: Any, of: str) -> None:
    async def odd(ctx: Context, text): ...  # type: ignore[no-untyped-def]

    odd.__annotations__ = {"text": hint} if of == "parameters" else {"return": hint}
    with pytest.raises(TypeError, match=rf"odd: .*({of}|schemas|hints)"):
        analysis()(odd)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_context, "first parameter must be the context"),
        (context_by_name, "first parameter must be the context"),
        (any_number, "cannot be given by name"),
        (any_name, "cannot be given by name"),
        (by_place, "cannot be given by name"),
        (unknown_hint, "cannot be made a JSON Schema"),
        (no_schema, "cannot be made a JSON Schema"),
        (no_result_schema, "cannot be made a JSON Schema"),
        (text_for_context, r"the first parameter is the context, not text: str: write \(ctx: Context, text: str"),
        (optional_context, "the first parameter is the context, not ctx"),
        (underscore, "cannot be given by name"),
    ],
)
def test_a_function_that_cannot_be_called_by_name_or_described_is_refused(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        analysis()(function)
    assert function.__name__ in str(caught.value)


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


def test_a_modules_analyses_are_found_by_name_and_the_rest_is_left_alone() -> None:
    found = find_analyses(module("m", measure=measure, again=measure, number=1, Point=Point, Context=Context))
    assert found == {"measure": described(measure)}


def test_two_analyses_of_one_name_are_refused() -> None:
    @analysis("measure")
    async def other(ctx: Context) -> None: ...

    with pytest.raises(TypeError, match=r"m: two analyses are called 'measure'"):
        find_analyses(module("m", measure=measure, other=other))


class More(Context, Protocol): ...


async def of_a_kind(ctx: More) -> None: ...
async def of_any_kind(ctx: Any) -> None: ...
async def untold(ctx) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("function", [of_a_kind, of_any_kind, untold])
def test_a_first_parameter_that_may_be_the_context_is_taken(function: Any) -> None:
    assert analysis()(function) is function
