"""The Python client. It speaks to the public contract only (docs/protocol.md) and needs no package of the servers."""
