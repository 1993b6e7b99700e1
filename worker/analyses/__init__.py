"""The analyses that come in the box. They know `worker.analysis` and their own libraries, and nothing else of
Millstream.
"""

from worker.analyses.process import process
from worker.analyses.text import stats

__all__ = ["process", "stats"]
