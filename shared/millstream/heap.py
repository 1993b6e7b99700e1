"""The garbage collector, in a process that runs for long."""

import gc

YOUNG = 10_000  # new objects before the young ones are looked at; Python's 700 come with a few messages


def freeze_startup_heap() -> None:
    """Call it once everything is loaded. Objects that exist now stay alive anyway, so the collector need not visit
    them: each full collection would stop the loop for some 50 ms and free nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
