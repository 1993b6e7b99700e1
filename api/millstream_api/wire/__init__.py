"""Bytes on a connection: request limits, one write a tick, whole responses, sendfile, slow clients.

It knows HTTP and sockets; of jobs it knows nothing, of files no more than a descriptor and a span.
"""
