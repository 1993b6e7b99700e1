"""The command `millstream`: one file for each group of subcommands, and what `up` and `demo` run.

It starts the tiers as processes of their own and imports neither.
"""
