"""What an exception means for its job: plain data, whose parts all fit into JSON."""

import json
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter, ValidationError

from millstream import Final, Retry
from millstream_worker.body import BadBody
from millstream_worker.outcome import MAX_MESSAGE_CHARS, Failure, OutputTooLarge, failure_of, refusal_of


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


class Hopeless(Final):
    pass


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("in groups", errors)


TWO, THREE = "in groups (2 sub-exceptions)", "in groups (3 sub-exceptions)"


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"n": "x"})
    return caught.value


DETAIL = "Input should be a valid integer, unable to parse string as an integer"
INVALID = invalid()
TABLE: list[tuple[BaseException, Failure]] = [
    (INVALID, Failure("analysis_error", str(INVALID), "allowed", extra={"type": "ValidationError"})),
    (OutputTooLarge("The job's log is full."), Failure("result_too_large", "The job's log is full.")),
    (Retry("not yet"), Failure("analysis_error", "not yet", "requested")),
    (Retry("not yet", delay_s=2.5), Failure("analysis_error", "not yet", "requested", 2.5)),
    (Final("never"), Failure("analysis_error", "never", extra={"type": "Final"})),
    (Hopeless("never"), Failure("analysis_error", "never", extra={"type": "Hopeless"})),
    (ValueError("no"), Failure("analysis_error", "no", "allowed", extra={"type": "ValueError"})),
    (KeyError("k"), Failure("analysis_error", "'k'", "allowed", extra={"type": "KeyError"})),
    (SystemExit(3), Failure("analysis_error", "3", "allowed", extra={"type": "SystemExit"})),
    (IndexError(), Failure("analysis_error", "IndexError", "allowed", extra={"type": "IndexError"})),
    (Mute(), Failure("analysis_error", "Mute", "allowed", extra={"type": "Mute"})),
    (ValueError("\udcff"), Failure("analysis_error", r"\udcff", "allowed", extra={"type": "ValueError"})),
    (
        group(ValueError("no"), group(KeyError("k"))),
        Failure("analysis_error", f"{TWO}: ValueError: no; KeyError: 'k'", "allowed", extra={"type": "ExceptionGroup"}),
    ),
    (
        group(ValueError("no"), group(Hopeless("never")), Retry("not yet")),
        Failure(
            "analysis_error", f"{THREE}: ValueError: no; Hopeless: never; Retry: not yet",
            extra={"type": "ExceptionGroup"},
        ),
    ),
    (
        group(ValueError("no"), Retry("not yet", delay_s=1), group(Retry("later", delay_s=2.5), Retry("soon"))),
        Failure(
            "analysis_error", f"{THREE}: ValueError: no; Retry: not yet; Retry: later; Retry: soon", "requested", 2.5
        ),
    ),
    (
        group(ValueError("no"), Retry("not yet")),
        Failure("analysis_error", f"{TWO}: ValueError: no; Retry: not yet", "requested"),
    ),
    (
        group(Retry("not yet"), OutputTooLarge("The job's log is full.")),
        Failure("result_too_large", f"{TWO}: Retry: not yet; OutputTooLarge: The job's log is full."),
    ),
    (
        group(*[IndexError()] * 8),
        Failure(
            "analysis_error", "in groups (8 sub-exceptions): " + "; ".join(["IndexError: IndexError"] * 5), "allowed",
            extra={"type": "ExceptionGroup"},
        ),
    ),
    (
        group(Mute(), ValueError("\udcff")),
        Failure(
            "analysis_error", rf"{TWO}: Mute: Mute; ValueError: \udcff", "allowed", extra={"type": "ExceptionGroup"}
        ),
    ),
    (
        BaseExceptionGroup("both", [SystemExit(3), ValueError("no")]),
        Failure(
            "analysis_error", "both (2 sub-exceptions): SystemExit: 3; ValueError: no", "allowed",
            extra={"type": "BaseExceptionGroup"},
        ),
    ),
]  # fmt: skip
#: Before an analysis has begun.
REFUSALS: list[tuple[BaseException, Failure]] = [
    (
        INVALID,
        Failure(
            "invalid_params",
            f"The parameters are wrong: n: {DETAIL}.",
            extra={"errors": [{"pointer": "/n", "detail": DETAIL}]},
        ),
    ),
    (BadBody("no JSON"), Failure("invalid_params", "no JSON")),
    (KeyError("k"), Failure("analysis_error", "'k'", "allowed", extra={"type": "KeyError"})),
]


@pytest.mark.parametrize(("error", "failure"), TABLE, ids=lambda value: type(value).__name__)
def test_an_exception_is_told_as_data_that_survives_json(error: BaseException, failure: Failure) -> None:
    found = failure_of(error)
    assert {**asdict(found), "traceback": None} == asdict(failure)
    assert Failure(**json.loads(json.dumps(asdict(found)).encode())) == found


@pytest.mark.parametrize(("error", "failure"), REFUSALS, ids=lambda value: type(value).__name__)
def test_parameters_that_could_not_be_read_are_told_as_such(error: BaseException, failure: Failure) -> None:
    assert {**asdict(refusal_of(error)), "traceback": None} == asdict(failure)


def test_a_group_may_be_deep_and_large() -> None:
    deep: Exception = Final("never")
    for _ in range(5000):
        deep = ExceptionGroup("deep", [deep])
    failure = failure_of(ExceptionGroup("all", [deep, *[ValueError("x" * 5000)] * 100]))
    assert (failure.retry, len(failure.message)) == ("never", MAX_MESSAGE_CHARS)


@pytest.mark.parametrize(("error", "failure"), TABLE, ids=lambda value: type(value).__name__)
def test_only_what_may_be_a_defect_of_the_analysis_has_a_traceback(error: BaseException, failure: Failure) -> None:
    assert (failure_of(error).traceback is not None) == bool(failure.extra and "type" in failure.extra)


def test_the_traceback_names_the_place_and_the_cause() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("broken \udcff text") from error
    except ValueError as error:
        text = failure_of(error).traceback or ""
    assert text.startswith("Traceback (most recent call last):")
    assert "KeyError: 'first'" in text
    assert "test_the_traceback_names_the_place_and_the_cause" in text
    assert text.endswith(r"ValueError: broken \udcff text")


def test_a_long_message_is_cut() -> None:
    assert failure_of(ValueError("x" * 20_000)).message == "x" * MAX_MESSAGE_CHARS


def test_the_client_is_told_the_code_the_message_and_what_else_there_is() -> None:
    failure = Failure("analysis_error", "no", "allowed", 1.5, {"type": "ValueError"}, "Traceback …")
    assert failure.as_error() == {"code": "analysis_error", "message": "no", "type": "ValueError"}
    assert Failure("timeout", "late").as_error() == {"code": "timeout", "message": "late"}
