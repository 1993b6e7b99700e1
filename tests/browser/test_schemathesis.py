"""schemathesis against the published OpenAPI document: no server error, no answer that is not documented."""

import asyncio
import json
import sys

import httpx

from tests.browser.conftest import Live

STREAMS = r"^/(jobs/\{job\}/events|stream/file|async_route)$"


async def test_the_openapi_document_tells_the_truth(live: Live) -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{live.api.url}/openapi.json",
        "--exclude-path-regex", STREAMS,
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
        "--max-examples", "40", "--generation-deterministic", "--request-timeout", "10", "--no-color",
        "--exclude-checks", "unsupported_method", "--phases", "examples,coverage,fuzzing",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=live.data,
    )  # fmt: skip
    printed, _ = await running.communicate()
    assert running.returncode == 0, printed.decode()[-6000:]


async def test_the_asyncapi_document_is_valid(live: Live, tmp_path: object) -> None:
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        document = (await http.get("/asyncapi.json")).json()
    installing = await asyncio.create_subprocess_exec(
        "npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(tmp_path), "@asyncapi/parser@3"
    )
    assert await installing.wait() == 0
    script = """
        const { Parser } = require("@asyncapi/parser");
        let text = ""; process.stdin.on("data", d => text += d).on("end", async () => {
            const { diagnostics } = await new Parser().parse(text);
            const errors = diagnostics.filter(d => d.severity === 0).map(d => `${d.path.join(".")}: ${d.message}`);
            console.log(errors.join("\\n")); process.exit(errors.length ? 1 : 0);
        });
    """
    checking = await asyncio.create_subprocess_exec(
        "node", "-e", script, cwd=str(tmp_path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await checking.communicate(json.dumps(document).encode())
    assert checking.returncode == 0, printed.decode()[:3000]
