"""Every change of the table, by where it is made."""

from tests.mutants import Mutant
from tests.mutants.api import API
from tests.mutants.edge import EDGE
from tests.mutants.files import FILES
from tests.mutants.store import STORE
from tests.mutants.wire import WIRE
from tests.mutants.worker import WORKER

MUTANTS: list[Mutant] = [*STORE, *WORKER, *API, *EDGE, *FILES, *WIRE]
