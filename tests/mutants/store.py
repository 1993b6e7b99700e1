"""What the scripts of the store and its connection promise."""

from tests.mutants import Mutant

STORE: list[Mutant] = []
