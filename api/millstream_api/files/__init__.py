"""Serving, uploading, listing and following files, by RFC 9110 and tus 1.0.

What headers decide is decided without I/O (ranges, conditions, representations). This package does not know jobs.
"""
