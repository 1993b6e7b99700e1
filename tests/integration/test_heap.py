"""What is loaded at the start is not collected again, in both kinds of processes."""

import json
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import Stack
from tests.processes import Processes, until

TELLS = """
import gc, json, pathlib, signal
def tell(*_):
    text = json.dumps([gc.get_freeze_count(), gc.get_threshold()[0]])
    path = pathlib.Path({path!r})
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)
signal.signal(signal.SIGUSR1, tell)
"""


@pytest.mark.parametrize("kind", ["api", "worker"])
async def test_what_is_loaded_is_not_collected_again(
    stack: Stack, own_processes: Processes, tmp_path: Path, kind: str
) -> None:
    told = tmp_path / "told"
    (tmp_path / "sitecustomize.py").write_text(TELLS.format(path=str(told)))
    start = own_processes.api if kind == "api" else own_processes.worker
    process = await start(stack.store, PYTHONPATH=str(tmp_path))

    async def settled() -> bool:
        process.signal(signal.SIGUSR1)
        frozen, threshold = json.loads(told.read_text()) if told.exists() else (0, 0)
        return frozen > 10_000 and threshold > 5_000

    await until(settled, what="a heap that is settled")
