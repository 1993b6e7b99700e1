"""Every Redis key and channel of Millstream, and how long each lives. No I/O.

| key | holds | lives |
|---|---|---|
| `ms:job:<id>` | the record of a job (hash) | overall time to live; after the end: time to live after the end |
| `ms:log:<id>` | its events (stream, entry ids `seq-0`) | as the record |
| `ms:key:<owner>:<key>` | the job that an idempotency key names | as the record |
| `ms:inflight:<owner>` | an owner's unfinished jobs (sorted set by expiry) | overall time to live |
| `ms:jobs:<owner>` | an owner's newest jobs (sorted set by creation) | overall time to live; bounded |
| `ms:bytes:<owner>` | bytes that an owner's jobs hold (hash; see prelude.lua) | as its jobs |
| `ms:bucket:<owner>` | an owner's tokens for submissions (hash) | until the bucket is full again |
| `ms:front:<lane>:<owner>` | an owner's jobs that wait in a lane (sorted set) | overall time to live; bounded |
| `ms:back:<lane>` | jobs that wait until one of their owner's leaves the lane (sorted set) | no expiry; bounded |
| `ms:bell:<queue>` | wakes an idle worker (list) | no expiry; at most one entry |
| `ms:worker:<id>` | one worker's last heartbeat (JSON) | one lease and 1 s |
| `ms:workers` | ids of workers by when their heartbeat expires (sorted set) | no expiry; trimmed at each heartbeat |
| `ms:probe` | what `/readyz` would push to, to see whether the store takes writes | never there |
| `ms:analyses` | what workers have advertised (hash) | overall time to live, since the last worker said so |
| `ms:known` | names of advertised analyses (sorted set by when each is forgotten) | as `ms:analyses` |
| `ms:lane:<queue>:<priority>` | a lane (sorted set): by when due, or end of the lease | no expiry; bounded by depth |
| `arq:queue…` | what stock arq clients enqueued (sorted set by when due; adopted: far off) | no expiry; arq's own |
| `arq:queue…:health-check` | a stock worker serves this queue; only stock workers write it | arq's own |
| `arq:job:<id>` | arq's job body | overall time to live, gone at the end |
| `arq:in-progress:<id>` | the token that owns the job | one lease |
| `arq:retry:<id>` | arq's count of tries; only stock workers write it | arq's own |
| `arq:abort` | what stock arq clients want aborted (sorted set by when) | a day; an entry goes with its job |
| `arq:result:<id>` | arq's result, only for jobs that stock arq enqueued | time to live after the end |

Channels: `ms:node:<id>` (one an API process), `ms:stop:<id>` (one a worker), `ms:catalog` (the analyses changed).
"""

JOB = "ms:job:"
LOG = "ms:log:"
KEY = "ms:key:"
INFLIGHT = "ms:inflight:"
JOBS = "ms:jobs:"
BYTES = "ms:bytes:"
BUCKET = "ms:bucket:"
FRONT = "ms:front:"
BACK = "ms:back:"
LANE = "ms:lane:"
BELL = "ms:bell:"
WORKER = "ms:worker:"
WORKERS = "ms:workers"
ANALYSES = "ms:analyses"
KNOWN = "ms:known"
NODE = "ms:node:"
STOP = "ms:stop:"
CATALOG = "ms:catalog"
PROBE = "ms:probe"

BODY = "arq:job:"
LEASE = "arq:in-progress:"
RETRY = "arq:retry:"
RESULT = "arq:result:"
ABORT = "arq:abort"
QUEUE = "arq:queue"

#: The names that the scripts in lua/ may use for these.
IN_LUA = {name: value for name, value in dict(globals()).items() if name.isupper() and isinstance(value, str)}


def lane(queue: str = "default", priority: str = "default") -> str:
    """One priority of one queue. Stock arq workers do not look here: they delete the jobs that they do not know."""
    return f"{LANE}{queue}:{priority}"


def arq_queue(queue: str) -> str:
    """Where stock arq clients enqueue for a queue, unless a worker is told otherwise."""
    return QUEUE if queue == "default" else f"{QUEUE}:{queue}"


def bell(queue: str) -> str:
    return BELL + queue
