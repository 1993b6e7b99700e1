"""The store, as both tiers use it: every key, every script, and the connection that carries the calls.

Nothing else names a key or sends a command. What happens to a job is decided in lua/, atomically; nothing here knows
of sockets, HTTP or analyses.
"""
