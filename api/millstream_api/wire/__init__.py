"""Bytes on a connection: limits on what comes, one write a tick, whole answers, sendfile, clients that read too slowly.

It knows HTTP and sockets, and neither jobs nor files beyond a descriptor and a span.
"""
