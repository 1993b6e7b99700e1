"""Which store holds a job. The job's id says so from the moment it is made; today there is one store, for all."""

from millstream.protocol.messages import Submit
from millstream.store.store import Store, new_job_id


class Stores:
    """Every call that is about one job goes to `of(job)`; `only` is asked about workers, queues and analyses."""

    def __init__(self, only: Store) -> None:
        self.only = only

    def new_job_id(self, request: Submit) -> str:
        """An id for the job that is asked for. Requests with the same key must lead to the same store."""
        return new_job_id()

    def of(self, job: str) -> Store:
        return self.only
