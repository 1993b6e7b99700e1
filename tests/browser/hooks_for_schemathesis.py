"""Loaded by schemathesis: how it writes a body that it does not know."""

import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
