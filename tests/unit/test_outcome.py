"""What an exception means for its job: plain data, whose parts all fit into JSON."""

import json
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter, ValidationError

from millstream import Final, Retry
from millstream_worker.body import BadBody
from millstream_worker.outcome import MAX_MESSAGE_CHARS, Failure, OutputTooLarge, failure_of


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


class Hopeless(Final):
    pass


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"n": "x"})
    return caught.value


DETAIL = "Input should be a valid integer, unable to parse string as an integer"
TABLE: list[tuple[BaseException, Failure]] = [
    (
        invalid(),
        Failure(
            "invalid_params",
            f"The parameters are wrong: n: {DETAIL}.",
            extra={"errors": [{"pointer": "/n", "detail": DETAIL}]},
        ),
    ),
    (BadBody("no JSON"), Failure("invalid_params", "no JSON")),
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
]  # fmt: skip


@pytest.mark.parametrize(("error", "failure"), TABLE, ids=lambda value: type(value).__name__)
def test_an_exception_is_told_as_data_that_survives_json(error: BaseException, failure: Failure) -> None:
    found = failure_of(error)
    assert {**asdict(found), "traceback": None} == asdict(failure)
    assert Failure(**json.loads(json.dumps(asdict(found)).encode())) == found


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
