"""The built-in analyses. They know `millstream_worker.analysis` and their libraries, and nothing else of Millstream."""

from millstream_worker.analyses.process import process
from millstream_worker.analyses.text import stats

__all__ = ["process", "stats"]
