import pytest

from millstream.backoff import backoff_s


def test_it_doubles_up_to_the_bound() -> None:
    assert [backoff_s(n, first_s=0.5, max_s=3) for n in (1, 2, 3, 4, 5)] == [0.5, 1, 2, 3, 3]


@pytest.mark.parametrize("failures", [64, 1_100, 10**6])
def test_it_holds_however_long_an_outage_lasts(failures: int) -> None:
    assert backoff_s(failures, first_s=0.02, max_s=1) == 1
