"""The table of changes that break a promise is true of the code as it stands; `make mutants` makes them."""

import re

from tests.mutants import ROOT
from tests.mutants.table import MUTANTS


def test_each_change_can_still_be_made() -> None:
    found = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in found.items() if count != 1} == {}
    assert all(mutant.old != mutant.new for mutant in MUTANTS)


def test_each_change_has_a_name_of_its_own_and_a_test_that_is_there() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        file, _, name = mutant.test.partition("::")
        name = name.partition("[")[0].rpartition("::")[2]
        assert re.search(rf"def {name}\(", (ROOT / file).read_text()), mutant
