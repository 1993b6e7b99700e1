"""The built-in analyses. They know the public face of `millstream` and their libraries, and nothing else of it."""

from millstream_worker.analyses.process import process
from millstream_worker.analyses.text import stats

__all__ = ["process", "stats"]
