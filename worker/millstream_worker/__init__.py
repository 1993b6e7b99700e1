"""The back: claims jobs, runs their analyses, writes their events. It never imports the API's package.

`analyses` holds the built-in ones, which know the public face of `millstream` and nothing of the worker.
"""
