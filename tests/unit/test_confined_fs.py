"""What a path may open: the directory's own regular files, and nothing else, whatever is tried."""

import fcntl
import os
import random
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import confined_fs
from millstream.confined_fs import NotServed, ServedDirectory, without_dots


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything odd in it, and a secret outside."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    home = outside / "home"
    (home / "deep" / "er").mkdir(parents=True)
    for name in (
        "a",
        "deep/b",
        "deep/er/c",
        "naïve file",
        "日本",
        "percent%2e",
        "new\nline",
        "~",
        "-rf",
        ".hidden",
        "deep/.hidden",
    ):
        (home / name).write_text("served")
    (home / "out").symlink_to(outside)
    (home / "file-out").symlink_to(outside / "secret")
    (home / "in").symlink_to("a")
    (home / "loop").symlink_to("loop")
    (home / "dangling").symlink_to("nowhere")
    (home / "root").symlink_to("/")
    (home / "proc").symlink_to("/proc/self/cwd")
    (home / "deep" / "up").symlink_to("..")
    (home / "back\\slash").write_text("never")
    (home / "back\\dir").mkdir()
    (home / "back\\dir" / "x").write_text("never")
    (home / os.fsdecode(b"not-utf-8-\xff")).write_text("never")
    (home / ".hidden-dir").mkdir()
    (home / ".hidden-dir" / "x").write_text("never")
    try:
        os.mknod(home / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pass  # only root makes devices
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    return home


@pytest.fixture(params=["openat2", "step by step"])
def directory(home: Path, request: pytest.FixtureRequest) -> Iterator[ServedDirectory]:
    directory = ServedDirectory(home)
    if request.param == "step by step":
        directory._openat2 = False
    elif not directory._openat2:
        pytest.skip("this kernel has no openat2")
    yield directory
    directory.close()


SERVED = ["a", "deep/b", "deep/er/c", "naïve file", "日本", "percent%2e", "new\nline", "~", "-rf"]


@pytest.mark.parametrize("path", SERVED)
def test_regular_files_are_opened(directory: ServedDirectory, path: str) -> None:
    file, _ = directory.open(path)
    assert os.read(file, 10) == b"served"
    os.close(file)


@pytest.mark.parametrize(
    ("path", "same"),
    [("./a", "a"), ("a/.", "a"), ("deep/./b", "deep/b"), ("././deep/././er/./c/./.", "deep/er/c"),
     ("./" * 200 + "a", "a"), ("日本/.", "日本")],
)  # fmt: skip
def test_a_dot_means_the_step_before_it(directory: ServedDirectory, path: str, same: str) -> None:
    assert without_dots(path) == same
    assert opened(directory, path) == opened(directory, same) is not None
    if (cached := directory.open_cached(path)) is not None:
        assert os.fstat(cached.file).st_ino == cached.found.st_ino
        os.close(cached.file)
    with directory.parent(path) as (_, name):
        assert name == same.rpartition("/")[2]


@pytest.mark.parametrize(
    "path",
    ["", "/", ".", "..", "../secret", "deep/../a", "deep/../../secret", "/etc/passwd", "//a", "a/", "deep//b", "./",
     "/.", "a/./", "./.hidden", "deep/./.hidden", "./../secret", "out/./secret", "./" * 200, "deep/./../a", "...",
     ".hidden", "deep/.hidden", "deep", "out/secret", "file-out", "in", "loop", "dangling", "pipe", "socket", "a\0",
     "missing", "a/b", "deep\\b", "x" * 300, "null", "root/etc/passwd", "proc/a", "deep/up/a", "deep/up/../secret",
     "back\\slash", "back\\dir/x", "not-utf-8-\udcff", "\ud800", ".hidden-dir/x", "deep/.", "loop/x",
     "a\0b", "d/" * 100 + "x", "deep/\0", "é" * 128, "日本/x", "a/..", "~/x", "x/" * 3000 + "x"],
)  # fmt: skip
def test_everything_else_is_as_if_it_were_not_there(directory: ServedDirectory, path: str) -> None:
    with pytest.raises(NotServed):
        directory.open(path)
    try:
        assert directory.open_cached(path) is None
    except NotServed:
        pass


STEP = st.one_of(
    st.sampled_from(
        [
            "..",
            ".",
            "",
            "a",
            "deep",
            "er",
            "b",
            "out",
            "secret",
            "in",
            "file-out",
            "home",
            ".hidden",
            "%2e%2e",
            "loop",
            "up",
            "root",
            "proc",
            "etc",
            "passwd",
            "null",
            "pipe",
            "socket",
            "dangling",
            "%00",
            "%2f",
            "%5c",
        ]
    ),
    st.text(st.characters(), max_size=4),  # lone surrogates too
)


def opened(directory: ServedDirectory, path: str) -> tuple[int, int] | None:
    """The inode that a path opens, if it opens one."""
    try:
        file, _ = directory.open(path)
    except NotServed:
        return None
    try:
        assert os.read(file, 10) == b"served"
        found = os.fstat(file)
        return found.st_dev, found.st_ino
    finally:
        os.close(file)


@settings(max_examples=500)
@given(steps=st.lists(STEP, max_size=6))
def test_no_path_leads_outside_and_both_ways_of_opening_agree(home: Path, steps: list[str]) -> None:
    path = unquote("/".join(steps))
    found = []
    for openat2 in (True, False):
        directory = ServedDirectory(home)
        directory._openat2 = directory._openat2 and openat2
        try:
            found.append(opened(directory, path))
            try:
                cached = directory.open_cached(path)
            except NotServed:
                assert found[-1] is None, "what can be opened must not be denied"
            else:
                assert cached is None or found[-1] is not None
                if cached is not None:
                    os.close(cached.file)
        finally:
            directory.close()
    assert found[0] == found[1]
    expected = (home / path).stat() if path in SERVED else None
    assert found[0] == (expected and (expected.st_dev, expected.st_ino))


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
            directory = ServedDirectory(home)
            directory._openat2 = directory._openat2 and openat2
            served = refused = 0
            while min(served, refused) < 200:  # until the race has been run
                found = opened(directory, "d/x")  # fails on a secret
                served, refused = served + (found is not None), refused + (found is None)
            directory.close()
    finally:
        stop.set()
        swapping.join()


@pytest.mark.parametrize("number", [None, 100_000], ids=["machine", "kernel"])
def test_where_there_is_no_openat2_the_same_is_served(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """A machine whose number of that system call is not known here, and a kernel that does not have it."""
    monkeypatch.setattr(confined_fs, "_SYS_OPENAT2", number)
    directory = ServedDirectory(home)
    assert directory.open_cached("a") is None, "it cannot tell what waits for no disk"
    for path in SERVED:
        assert opened(directory, path) is not None
    for path in ("out/secret", "file-out", "in", "../secret"):
        assert opened(directory, path) is None
    directory.close()


def test_walking_finds_just_what_can_be_opened(directory: ServedDirectory) -> None:
    found = [path for path, _ in directory.walk("")]
    assert found == sorted(found)
    assert set(found) == set(SERVED)
    assert [path for path, _ in directory.walk("deep/")] == ["deep/b", "deep/er/c"]
    assert [path for path, _ in directory.walk("deep/e")] == ["deep/er/c"]
    assert [path for path, _ in directory.walk("../")] == []


def test_walks_at_the_same_time_each_find_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:04}" for number in range(3000)]  # more than one call of the system gives
    for name in names:
        (tmp_path / name).touch()
    directory, scan, inner = ServedDirectory(tmp_path), os.scandir, list[str]()

    @contextmanager
    def interrupted(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        monkeypatch.setattr(os, "scandir", scan)
        with scan(fd) as found:
            first = next(found)
            inner.extend(path for path, _ in directory.walk(""))
            yield chain([first], found)

    monkeypatch.setattr(os, "scandir", interrupted)
    outer = [path for path, _ in directory.walk("")]
    directory.close()
    assert (outer, inner) == (names, names)


@pytest.mark.parametrize("prefix", ["", "n1", "n99"])
def test_a_large_directory_is_sorted_run_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """While one run is sorted, no other thread of the process runs."""
    names = [f"n{number:03}" for number in random.Random(1).sample(range(1000), 300)]
    for name in names:
        (tmp_path / name).touch()
    runs: list[int] = []

    def watched(run: list[str]) -> list[str]:
        runs.append(len(run))
        return sorted(run)

    monkeypatch.setattr(confined_fs, "SORTED_RUN", 20)
    monkeypatch.setattr(confined_fs, "sorted", watched, raising=False)
    directory = ServedDirectory(tmp_path)
    wanted = sorted(name for name in names if name.startswith(prefix))
    assert [path for path, _ in directory.walk(prefix)] == wanted
    directory.close()
    assert max(runs) <= 20
    assert sum(runs) == len(wanted), "nothing is kept of what is not wanted"


def test_walking_gives_what_each_path_opens(directory: ServedDirectory) -> None:
    for path, entry in directory.walk(""):
        assert opened(directory, path) == (entry.st_dev, entry.st_ino)


@pytest.mark.parametrize("path", ["a", "deep/b"])
def test_each_writer_of_a_directory_has_a_lock_of_its_own(directory: ServedDirectory, path: str) -> None:
    with directory.parent(path) as (one, _), directory.parent(path) as (other, _):
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "path", ["", "..", "../x", "out/x", "root/x", "in/x", "loop/x", ".hidden-dir/x", "a/x", "pipe/x", "\ud800/x", "/x"]
)
def test_a_parent_is_never_outside(directory: ServedDirectory, path: str) -> None:
    for create in (False, True):
        with pytest.raises((NotServed, OSError)), directory.parent(path, create=create):
            pass


def test_nothing_stays_open(directory: ServedDirectory) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in [*SERVED, "deep", "pipe", "out/secret", "deep/missing", "a/b", "../x"]:
        opened(directory, path)
        try:
            with directory.parent(path):
                pass
        except NotServed:
            pass
    list(directory.walk(""))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_paths_may_have_a_hundred_steps_and_walks_go_no_deeper(tmp_path: Path) -> None:
    directory = ServedDirectory(tmp_path)
    for openat2 in (directory._openat2, False):
        directory._openat2 = openat2
        for path in ("d/" * 99 + "f", "d/" * 98 + "f"):
            with directory.parent(path, create=True) as (parent, name):
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=parent))
            os.close(directory.open(path).file)
        with pytest.raises(NotServed), directory.parent("d/" * 100 + "f", create=True):
            pass
        below = tmp_path / ("d/" * 100)
        below.mkdir(exist_ok=True)
        (below / "f").touch()
        with pytest.raises(NotServed):
            directory.open("d/" * 100 + "f")
        assert [path.count("/") for path, _ in directory.walk("")] == [99, 98]
    directory.close()
