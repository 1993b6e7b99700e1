"""The error replies by which a store says "not now": it is there, and will carry the command out later. No I/O."""

from millstream.protocol.errors import StoreUnavailable

#: The first word of such a reply, and what it means.
NOT_NOW = {
    "BUSY": "a script keeps it busy",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "MISCONF": "it cannot save its data",
    "NOREPLICAS": "it has too few replicas",
    "OOM": "its memory is full",
    "READONLY": "it is a replica",
    "TRYAGAIN": "its cluster is moving keys",
    "UNBLOCKED": "its role has changed",
}


class StoreRefuses(StoreUnavailable):
    """The store says "not now". It may have carried out what was asked, as after a connection that broke."""


def refusal(error: Exception) -> StoreRefuses | None:
    """What an error reply, as any client raises it, says if it is one of these; else None."""
    code = str(error).partition(" ")[0]
    return StoreRefuses(f"The store refuses at the moment: {NOT_NOW[code]} ({code}).") if code in NOT_NOW else None
