"""Durable analysis jobs: what authors of analyses and clients import.

    from millstream import Client, Context, Final, Retry, analysis

Both tiers stand on this package; it knows neither. What is named here is found when it is first used, so that an author
needs nothing of a client's packages, nor a client of an author's; none of it needs those of the servers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.authoring.analysis import analysis
    from millstream.authoring.context import Context
    from millstream.authoring.outcomes import Final, Retry
    from millstream.client.client import Client, JobFailed, RequestFailed

__all__ = ["Client", "Context", "Final", "JobFailed", "RequestFailed", "Retry", "analysis"]

_MODULES = {
    "analysis": "millstream.authoring.analysis",
    "Context": "millstream.authoring.context",
    **dict.fromkeys(("Final", "Retry"), "millstream.authoring.outcomes"),
    **dict.fromkeys(("Client", "JobFailed", "RequestFailed"), "millstream.client.client"),
}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _MODULES:
        raise AttributeError(f"module 'millstream' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value
