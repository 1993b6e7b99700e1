"""What the file tier promises."""

from tests.mutants import Mutant

FILES: list[Mutant] = []
