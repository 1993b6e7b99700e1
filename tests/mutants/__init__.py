"""Changes that each break one promise, and the test that must notice: a test of the tests.

    make mutants               # all of them
    make mutants M="L26 R02"   # some, by the beginning of their names

Each runs in a copy of the tree, which is thrown away. A row whose `old` is no longer in its file fails the quick suite
(tests/unit/test_mutants.py): a change to guarded code moves its row along.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old`, which stands exactly once in `file`, becomes `new`; then `test` (a pytest node id) must fail."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    test: str
