"""The words of the contract with clients: errors, events, the states of a job, messages, the catalog of analyses.

Plain data and pure functions: no loop, no store, no clock, no socket.
"""
