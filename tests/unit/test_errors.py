"""The error catalogue, compared with the table of the wire contract."""

import pytest

from millstream.protocol.errors import PROBLEM_TYPES, Problem, sentence

#: §3 of the contract: slug, JSON-RPC code, HTTP status.
CONTRACT = [
    ("parse_error", -32700, 400),
    ("invalid_request", -32600, 400),
    ("method_not_found", -32601, 400),
    ("invalid_params", -32602, 422),
    ("internal_error", -32603, 500),
    ("unauthorized", -32001, 401),
    ("forbidden", -32003, 403),
    ("unknown_analysis", -32004, 404),
    ("job_not_found", -32005, 404),
    ("result_not_ready", -32008, 409),
    ("idempotency_conflict", -32009, 409),
    ("payload_too_large", -32013, 413),
    ("rate_limited", -32029, 429),
    ("too_many_in_flight", -32031, 429),
    ("too_much_kept", -32035, 429),
    ("queue_full", -32030, 503),
    ("draining", -32032, 503),
    ("store_unavailable", -32033, 503),
    ("no_workers", -32034, 503),
]


@pytest.mark.parametrize(("slug", "code", "status"), CONTRACT)
def test_each_slug_of_the_contract_has_its_codes(slug: str, code: int, status: int) -> None:
    assert (PROBLEM_TYPES[slug].code, PROBLEM_TYPES[slug].status) == (code, status)


def test_every_code_is_of_one_slug_and_there_is_none_beside_the_contract() -> None:
    codes = [kind.code for kind in PROBLEM_TYPES.values()]
    assert len(set(codes)) == len(codes)
    assert {slug for slug, _, _ in CONTRACT} <= set(PROBLEM_TYPES)
    for slug, kind in PROBLEM_TYPES.items():
        reserved = {"parse_error", "invalid_request", "method_not_found", "invalid_params", "internal_error"}
        assert (slug in reserved) == (kind.code <= -32600), "JSON-RPC 2.0 §5.1 keeps these for itself"
        assert -32700 <= kind.code <= -32000
        assert 400 <= kind.status <= 599


def test_a_problem_is_an_rfc_9457_document_with_only_what_there_is_to_say() -> None:
    bare = Problem("job_not_found", "There is no job 'x'.")
    assert str(bare) == "There is no job 'x'."
    assert bare.document() == {
        "type": "/problems/job_not_found",
        "title": "There is no such job",
        "status": 404,
        "detail": "There is no job 'x'.",
    }
    errors = [{"pointer": "/x", "detail": "unknown"}]
    full = Problem("invalid_params", "x: unknown", errors, retry_after_s=2).document("/jobs")
    assert (full["instance"], full["errors"], full["retry_after_s"]) == ("/jobs", errors, 2)


def test_a_sentence_names_the_first_five_members_and_the_whole_by_nothing() -> None:
    assert sentence([{"pointer": "", "detail": "Input should be an object"}]) == "Input should be an object"
    many = [{"pointer": f"/params/{number}", "detail": "no"} for number in range(6)]
    assert sentence(many) == "params/0: no; params/1: no; params/2: no; params/3: no; params/4: no"
    assert len(sentence([{"pointer": "/x", "detail": "y" * 2000}])) == 1000
