"""What a worker promises."""

from tests.mutants import Mutant

WORKER: list[Mutant] = []
