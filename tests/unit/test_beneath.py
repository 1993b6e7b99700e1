"""What a path may open: the directory's own regular files, and nothing else, whatever is tried."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.beneath import Directory, NotServed, parts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything odd in it, and a secret outside."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    home = outside / "home"
    (home / "deep" / "er").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/er/c", "naïve file", "日本", "percent%2e", ".hidden", "deep/.hidden"):
        (home / name).write_text("served")
    (home / "out").symlink_to(outside)
    (home / "file-out").symlink_to(outside / "secret")
    (home / "in").symlink_to("a")
    (home / "loop").symlink_to("loop")
    (home / "dangling").symlink_to("nowhere")
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    return home


@pytest.fixture(params=["openat2", "step by step"])
def directory(home: Path, request: pytest.FixtureRequest) -> Iterator[Directory]:
    directory = Directory(home)
    if request.param == "step by step":
        directory._openat2 = False
    elif not directory._openat2:
        pytest.skip("this kernel has no openat2")
    yield directory
    directory.close()


@pytest.mark.parametrize("path", ["a", "deep/b", "deep/er/c", "naïve file", "日本", "percent%2e"])
def test_regular_files_are_opened(directory: Directory, path: str) -> None:
    file = directory.open(path)
    assert os.read(file, 10) == b"served"
    os.close(file)


@pytest.mark.parametrize(
    "path",
    ["", "/", ".", "..", "../secret", "deep/../a", "deep/../../secret", "/etc/passwd", "//a", "a/", "deep//b",
     ".hidden", "deep/.hidden", "deep", "out/secret", "file-out", "in", "loop", "dangling", "pipe", "socket", "a\0",
     "missing", "a/b", "deep\\b", "x" * 300],
)  # fmt: skip
def test_everything_else_is_as_if_it_were_not_there(directory: Directory, path: str) -> None:
    with pytest.raises(NotServed):
        directory.open(path)
    try:
        assert directory.open_cached(path) is None
    except NotServed:
        pass


STEP = st.one_of(
    st.sampled_from(
        ["..", ".", "", "a", "deep", "er", "b", "out", "secret", "in", "file-out", "home", ".hidden", "%2e%2e", "loop"]
    ),
    st.text(max_size=4),
)


@given(steps=st.lists(STEP, max_size=6))
def test_no_path_leads_outside(home: Path, steps: list[str]) -> None:
    path = unquote("/".join(steps))
    for openat2 in (True, False):
        directory = Directory(home)
        directory._openat2 = directory._openat2 and openat2
        try:
            file = directory.open(path)
        except NotServed:
            continue
        finally:
            directory.close()
        try:
            assert os.read(file, 10) == b"served"
            assert all(not step.startswith(".") for step in parts(path))
        finally:
            os.close(file)


def test_a_directory_that_becomes_a_link_while_it_is_opened_leads_nowhere(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    (home / "real").mkdir(parents=True)
    (home / "real" / "x").write_text("served")
    (outside / "x").write_text("secret")
    (home / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source in ("real", "link"):
                (home / source).rename(home / "d")
                (home / "d").rename(home / source)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for openat2 in (True, False):
            directory = Directory(home)
            directory._openat2 = directory._openat2 and openat2
            for _ in range(3000):
                try:
                    file = directory.open("d/x")
                except NotServed:
                    continue
                assert os.read(file, 10) == b"served"
                os.close(file)
            directory.close()
    finally:
        stop.set()
        swapping.join()


def test_walking_finds_just_what_can_be_opened(directory: Directory) -> None:
    found = [path for path, _ in directory.walk("")]
    assert found == sorted(found)
    assert set(found) == {"a", "deep/b", "deep/er/c", "naïve file", "日本", "percent%2e"}
    assert [path for path, _ in directory.walk("deep/")] == ["deep/b", "deep/er/c"]
    assert [path for path, _ in directory.walk("deep/e")] == ["deep/er/c"]
    assert [path for path, _ in directory.walk("../")] == []
