"""`ctx.open`: an analysis reads the files that clients know, and no others."""

import os

from tests.integration.conftest import ANALYSES, Stack, database
from tests.integration.web import ended, submit, web
from tests.processes import Process, Processes


async def test_an_analysis_reads_files_and_cannot_escape(
    valkey: Process, stack: Stack, own_processes: Processes
) -> None:
    store = database(valkey, 12)
    (stack.data / "corpus").mkdir()
    (stack.data / "corpus" / "hamlet.txt").write_text("To be")
    (stack.data / "corpus" / ".secret").write_text("secret")
    (stack.data / "corpus" / "link").symlink_to("/etc/hostname")
    (stack.data / "corpus" / "out").symlink_to("/etc")
    os.mkfifo(stack.data / "corpus" / "pipe")
    data = str(stack.data)
    api = await own_processes.api(store, MILLSTREAM_DATA_DIR=data)
    await own_processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_DATA_DIR=data)
    async with web(api) as http:
        good = await ended(http, await submit(http, "read_file", {"path": "corpus/hamlet.txt"}))
        assert good["result"] == "To be"
        for path in (
            "../x",
            "/etc/hostname",
            "corpus/.secret",
            "corpus/link",
            "corpus",
            "corpus/../corpus/hamlet.txt",
            "corpus/out/hostname",
            "corpus/pipe",
            ".uploads/x",
            "corpus//hamlet.txt",
            "corpus/hamlet.txt/",
            "corpus\\hamlet.txt",
            "corpus/hamlet.txt\0",
            "%2e%2e/x",
            ".",
            "",
            "nothing",
        ):
            bad = await ended(http, await submit(http, "read_file", {"path": path}))
            assert (bad["error"]["code"], bad["error"]["type"]) == ("analysis_error", "FileNotFoundError"), path
            assert str(stack.data) not in bad["error"]["message"]
