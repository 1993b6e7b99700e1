"""The front: WebSocket and HTTP clients, answered from the store and from the data directory.

`wire` moves bytes on connections, `jobs` and `files` are the two things that are served, `published` describes them.
What concerns all of it stands beside them: the app, settings, problems, metrics. It never imports the workers' package.
"""
