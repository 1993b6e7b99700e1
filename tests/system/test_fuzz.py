"""Bytes that mean no good, on a running API: no 500, no traceback, no growth, and everyone else is answered.

FUZZ_S is how long (60 in CI, an hour by hand), FUZZ_SEED what it begins with; a failure names it.
"""

import asyncio
import json
import os
import random
import re
import time
from contextlib import suppress

import pytest

from tests.integration.test_framing import H2C, HANDSHAKE, request
from tests.integration.web import memory
from tests.processes import Process, Processes
from tests.system.stack import start
from tests.system.witness import witness
from tests.unit.test_frames import of_client

SECONDS = float(os.environ.get("FUZZ_S", "60" if os.environ.get("CI") else "10"))
SEED = int(os.environ.get("FUZZ_SEED", str(random.randrange(10**9))))
AT_ONCE = 20
MIB = 1024 * 1024

JSON, TUS = "Content-Type: application/json\r\n", "Tus-Resumable: 1.0.0\r\n"
JOB = b'{"analysis":"process","params":{"text":"x"},"key":"k","events":"terminal","on_disconnect":"cancel"}'
RPC = "Sec-WebSocket-Protocol: millstream.v1\r\n"
CORPUS = [
    *(request("GET", path) for path in ("/", "/healthz", "/readyz", "/metrics", "/jobs", "/analyses", "/openapi.json")),
    request("GET", "/files/", headers="Accept: application/jsonl\r\n"),
    request("GET", "/files/f", headers="Range: bytes=0-1,3-\r\nIf-Range: x\r\nAccept-Encoding: gzip;q=0.5, *\r\n"),
    request("HEAD", "/files/f", headers="Want-Repr-Digest: sha-256=5\r\nIf-None-Match: W/x, *\r\n"),
    request("PUT", "/files/f", headers="Repr-Digest: sha-256=:aGk=:\r\n", body=b"hello"),
    request("PUT", "/files/g/h", headers=H2C, body=b"x" * 300, chunked=True),
    request("DELETE", "/files/f", headers='If-Match: "x"\r\n'),
    request("GET", "/stream/file?path=f&offset=1"),
    request("POST", "/jobs", headers=JSON + "Prefer: wait=1\r\nIdempotency-Key: k\r\n", body=JOB),
    request("POST", "/jobs", headers=JSON + "Accept: text/event-stream\r\n", body=JOB),
    request("GET", "/jobs?status=running&limit=5&before=x"),
    request("GET", "/jobs/x/events?after=1-1", headers="Last-Event-ID: 1-1\r\n"),
    request("POST", "/uploads", headers=TUS + "Upload-Length: 5\r\nUpload-Metadata: path Zg==\r\n"),
    request("PATCH", "/uploads/x", headers=TUS + "Upload-Offset: 0\r\nUpload-Checksum: sha1 eA==\r\n", body=b"hi"),
    b"PUT /files/f HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
]  # fmt: skip
FRAMES = [
    *(of_client(1, json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
      for method, params in (
          ("ping", {}), ("job.submit", {"analysis": "process", "params": {"text": "x"}}), ("job.get", {"job": "x"}),
          ("job.attach", {"job": "x", "after": "1-1"}), ("job.cancel", {"job": "x"}), ("analysis.list", {}),
      )),
    of_client(1, b"[1,{}]"), of_client(1, b"half", final=False), of_client(0, b"the rest"), of_client(2, b"\x00" * 300),
    of_client(9, b"ping"), of_client(10, b""), of_client(8, b"\x03\xe8"),
]  # fmt: skip
BYTES = [
    b"\r\n",
    b"\n",
    b"\x00",
    b"\xff",
    b":",
    b" ",
    b"0",
    b"-1",
    b"9" * 20,
    b"%00",
    b"%ff",
    b"../",
    b'"',
    b",",
    b"[",
    b"{" * 50,
]


def changed(data: bytes, chance: random.Random) -> bytes:
    """Up to three changes: a bit, a piece left out, doubled or moved, something odd put in."""
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        at, end = sorted(chance.choices(range(len(data) + 1), k=2))
        match chance.randrange(5):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[min(end, at + 20) :]
            case 2:
                data = data[:end] + data[at:]
            case 3:
                data = data[:at] + chance.choice(BYTES) + data[at:]
            case _:
                data = data[:at] + chance.choice(BYTES) * chance.choice([1, 10, 1000]) + data[end:]
    return data


def conversation(chance: random.Random) -> list[bytes]:
    """What one connection says, in packets."""
    if chance.random() < 0.5:
        said = b"".join(changed(chance.choice(CORPUS), chance) for _ in range(chance.randint(1, 4)))
    else:
        said = request("GET", "/ws", headers=HANDSHAKE + chance.choice([RPC, ""]))
        said += b"".join(changed(chance.choice(FRAMES), chance) for _ in range(chance.randint(1, 20)))
    cuts = sorted(chance.choices(range(len(said) + 1), k=chance.choice([0, 0, 1, 5])))
    return [said[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]


async def talk(api: Process, packets: list[bytes], patience_s: float) -> bytes:
    """Say it and hear what comes, until the end or a little later."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    heard = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(patience_s):
            for packet in packets:
                writer.write(packet)
                await writer.drain()
            writer.write_eof()
            while data := await reader.read(MIB):
                heard += data
    writer.transport.abort()
    return heard


@pytest.mark.timeout(SECONDS + 60)
async def test_bytes_that_mean_no_good_do_no_harm(processes: Processes) -> None:
    stack = await start(processes, api={"MILLSTREAM_HEAD_S": "2", "MILLSTREAM_BODY_S": "2"})
    until, chance, count = time.monotonic() + SECONDS, random.Random(SEED), 0
    print(f"seed {SEED}")
    grown: list[int] = []

    async def fuzz() -> None:
        nonlocal count
        while time.monotonic() < until:
            packets = conversation(chance)
            heard = await talk(stack.api, packets, 1)
            assert not re.search(rb"HTTP/1\.1 500 |Traceback|internal_error", heard), (SEED, packets, heard[-2000:])
            count += 1
            if count in (1000, 2000):  # warm, and once more
                grown.append(memory(stack.api))

    await asyncio.gather(*(fuzz() for _ in range(AT_ONCE)))
    grown.append(memory(stack.api))
    wrong = [
        line for line in stack.api.log.read_text().splitlines() if '"level":"error"' in line or "Traceback" in line
    ]
    assert wrong == [], SEED
    assert grown[-1] - grown[0] < 64 * MIB, (SEED, count, grown)
    async with witness(stack.api) as client:
        job = await client.submit("process", {"text": "still here"})
        assert (await client.ends(job))[job]["data"]["result"] == "Processed data: still here"
    print(f"{count} conversations in {SECONDS:g} s; the API grew by {(grown[-1] - grown[0]) / MIB:.1f} MiB")
