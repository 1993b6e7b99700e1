"""Jobs and their events, over the socket and over HTTP: one set of commands, one hub, a way in for each transport.

What a session or a follower decides is free of I/O (session and its kinds, hub). It does not know the files.
"""
