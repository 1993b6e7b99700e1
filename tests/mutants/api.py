"""What sockets, sessions and the HTTP API promise."""

from tests.mutants import Mutant

API: list[Mutant] = []
