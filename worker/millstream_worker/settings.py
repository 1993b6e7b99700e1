"""What can be set for a worker."""

from pydantic import Field

from millstream.settings import Settings


class WorkerSettings(Settings):
    lease_s: float = Field(10, ge=0.3, description="seconds after which a dead worker's jobs run elsewhere")
    max_jobs: int = Field(100, ge=1, description="jobs that one worker runs concurrently (its slots)")
    queue: str = Field("default", description="the queue that this worker serves")
    arq_queues: str = Field(
        "",
        description="queues of stock arq whose jobs this worker runs too, comma-separated; not set: arq:queue, or "
        "arq:queue:NAME for a queue NAME of its own",
    )
    analyses: str = Field(
        "",
        description="modules or files (./x.py) with analyses, beside the installed ones; comma-separated",
    )
    timeout_s: float = Field(
        300, gt=0, description="seconds that one attempt may take, unless the analysis or the submit sets it"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="maximum attempts per job unless the analysis or the submit sets it; by default only attempts "
        "lost with their worker are repeated",
    )
    retry_base_s: float = Field(
        1, ge=0, description="the first retry waits up to this long, each next up to twice as long"
    )
    retry_cap_s: float = Field(60, ge=0, description="no retry waits longer than this, in seconds")
    finish_s: float = Field(
        0,
        ge=0,
        description="on SIGTERM, seconds that running jobs may continue before they are handed to another worker",
    )
    drain_s: float = Field(
        10, gt=0, description="on SIGTERM, seconds that handing jobs over may take before the process ends"
    )
    stall_s: float = Field(
        60, gt=0, description="a worker whose event loop is stalled for this many seconds releases its jobs"
    )
