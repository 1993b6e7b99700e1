"""What `pip install` of the wheel leaves behind."""

import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
BASE = r"""
import sys
from millstream import Client, Context, Final, Retry, analysis
import millstream.client.client
heavy = {"redis", "arq", "fastapi", "starlette", "uvicorn", "aiofiles", "cyclopts", "structlog"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(pip, check=True)
    (found,) = directory.glob("millstream-*.whl")
    return found


def test_no_name_is_left_that_is_not_ours(wheel: Path) -> None:
    names = {name.partition("/")[0] for name in ZipFile(wheel).namelist()}
    assert {name for name in names if not name.startswith("millstream-")} == {
        "millstream", "millstream_api", "millstream_worker",
    }  # fmt: skip
    assert "millstream/py.typed" in ZipFile(wheel).namelist()


def test_clients_and_authors_need_only_the_base_packages(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    subprocess.run([programs / "python", "-c", BASE], check=True, cwd=tmp_path)
    said = subprocess.run([programs / "millstream", "up"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (said.returncode, said.stderr) == (2, "The command needs more packages: pip install 'millstream[server]'\n")
