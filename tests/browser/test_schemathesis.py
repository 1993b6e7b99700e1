"""The published documents by third-party tools: schemathesis on OpenAPI (no server error, no answer that is not
documented), AsyncAPI's own parser on AsyncAPI.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.conftest import Live

# What would never end, or take long. A failed job's result is a documented 5xx; a real one shows in the log.
CONFIG = """
[[operations]]
include-name = "GET /async_route"
parameters = { "query.delay" = 0.01 }

[[operations]]
include-path-regex = "^/(files/[{]path[}]|stream/file)$"
parameters = { "query.follow" = false }

[[operations]]
include-name = "GET /jobs/{job}/result"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 500, 504]

[[operations]]
include-name = "POST /uploads"
parameters = { "header.Tus-Resumable" = "1.0.0", "header.Upload-Metadata" = "path dXBsb2Fk" }
"""
UPLOAD = """
[[operations]]
include-name = "{method} /uploads/{{id}}"
parameters = {{ "path.id" = "{id}", "header.Tus-Resumable" = "1.0.0" }}
"""
ROOT = Path(__file__).parents[2]
ENDLESS = "/jobs/{job}/events"


@pytest.mark.timeout(120)
async def test_the_openapi_document_tells_the_truth(live: Live, tmp_path: Path) -> None:
    (live.data / "large_file.txt").write_bytes(bytes(range(256)))
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        config = CONFIG
        for method in ("HEAD", "PATCH", "DELETE"):  # an upload for each
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Upload-Metadata": "path dXBsb2Fk"}
            begun = await http.post("/uploads", headers=headers)
            config += UPLOAD.format(method=method, id=begun.headers["location"].rpartition("/")[2])
    operations = sum(len(path.keys() - {"parameters"}) for name, path in paths.items() if name != ENDLESS)
    (tmp_path / "schemathesis.toml").write_text(config)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml",
        "run", f"{live.api.url}/openapi.json", "--exclude-path", ENDLESS,
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
        "--max-examples", "40", "--generation-deterministic", "--request-timeout", "10", "--no-color",
        "--phases", "examples,coverage,fuzzing", "--continue-on-failure",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.browser.hooks_for_schemathesis", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    printed, _ = await running.communicate()
    assert running.returncode == 0, printed.decode()[-6000:]
    assert f"Tested: {operations}\n" in printed.decode(), printed.decode()[-2000:]
    assert '"level": "error"' not in live.api.log.read_text()


CHECK = """
const { Parser } = require("@asyncapi/parser");
let text = ""; process.stdin.on("data", d => text += d).on("end", async () => {
    const { diagnostics } = await new Parser().parse(text);
    const errors = diagnostics.filter(d => d.severity === 0).map(d => `${d.path.join(".")}: ${d.message}`);
    console.log(JSON.stringify(errors));
});
"""


@pytest.mark.timeout(300)
async def test_the_asyncapi_document_is_valid(live: Live, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        assert not os.environ.get("CI"), "CI must have npm"
        pytest.skip("there is no npm here")
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        document = (await http.get("/asyncapi.json")).json()
    installing = await asyncio.create_subprocess_exec(
        "npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(tmp_path), "@asyncapi/parser@3"
    )
    assert await installing.wait() == 0

    async def errors(document: dict[str, Any]) -> list[str]:
        checking = await asyncio.create_subprocess_exec(
            "node", "-e", CHECK, cwd=tmp_path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await checking.communicate(json.dumps(document).encode())
        assert checking.returncode == 0
        found: list[str] = json.loads(printed)
        return found

    assert await errors(document) == []
    assert await errors({**document, "operations": {"x": {"action": "shout"}}}), "it finds what is wrong"
