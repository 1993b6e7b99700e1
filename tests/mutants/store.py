"""What the scripts of the store and its connection promise."""

from tests.mutants import Mutant

ATTEMPTS, SUBMIT = "tests/integration/test_attempts.py", "tests/integration/test_submit.py"

STORE: list[Mutant] = [
    Mutant(
        "L36",
        "the list of an owner's jobs is bounded",
        "shared/millstream/store/lua/submit.lua",
        "0, -10001)",
        "0, -20001)",
        f"{SUBMIT}::test_the_list_of_an_owners_jobs_is_bounded_and_keeps_the_newest",
    ),
    Mutant(
        "L36b",
        "the list of an owner's jobs forgets those of which nothing is left",
        "shared/millstream/store/lua/submit.lua",
        "index, '-inf', now - 2 * keep)",
        "index, '-inf', 0)",
        f"{SUBMIT}::test_the_list_of_an_owners_jobs_forgets_those_of_which_nothing_is_left",
    ),
    Mutant(
        "L36c",
        "the list of an owner's jobs lives as long as the jobs",
        "shared/millstream/store/lua/submit.lua",
        "redis.call('PTTL', index) < keep",
        "redis.call('PTTL', index) < 0",
        f"{SUBMIT}::test_what_lists_an_owners_jobs_lives_as_long_as_they_do",
    ),
    Mutant(
        "L36d",
        "what counts as in flight lives as long as the jobs",
        "shared/millstream/store/lua/submit.lua",
        "redis.call('PTTL', inflight) < life",
        "redis.call('PTTL', inflight) < 0",
        f"{SUBMIT}::test_what_lists_an_owners_jobs_lives_as_long_as_they_do",
    ),
    Mutant(
        "L36e",
        "a heartbeat does not shorten what others have in flight",
        "shared/millstream/store/lua/renew.lua",
        "r[2], 'GT')",
        "r[2])",
        f"{SUBMIT}::test_what_lists_an_owners_jobs_lives_as_long_as_they_do",
    ),
    Mutant(
        "L40",
        "a key names its job for as long as that runs",
        "shared/millstream/store/lua/renew.lua",
        "if r[4] then",
        "if false then",
        f"{ATTEMPTS}::test_a_key_names_its_job_for_as_long_as_that_runs",
    ),
]
