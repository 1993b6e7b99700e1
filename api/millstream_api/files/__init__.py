"""Paths to bytes: files served, uploaded, listed and followed by what RFC 9110 and tus 1.0 say.

What is decided from headers is free of I/O (ranges, conditions, representations). It does not know the jobs.
"""
