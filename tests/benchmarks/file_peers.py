"""How files are served elsewhere, under the same uvicorn settings: `python -m tests.benchmarks.file_peers NAME PORT
DIRECTORY`.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiofiles
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse

app = FastAPI()
NAME, PORT, DIRECTORY = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


@app.get("/files/{path}", response_model=None)
async def file(path: str) -> FileResponse | StreamingResponse:
    if NAME == "fileresponse":
        return FileResponse(DIRECTORY / path)
    return StreamingResponse(tutorial(DIRECTORY / path), media_type="application/octet-stream")


async def tutorial(path: Path) -> AsyncIterator[bytes]:
    """As the tutorial has it: 4,096 bytes at a time through aiofiles."""
    async with aiofiles.open(path, "rb") as handle:
        while chunk := await handle.read(4096):
            yield chunk


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=PORT, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
