"""Which analyses a worker loads, from where, and what it says when they are not there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream_worker.loading import load_analyses

SHOUT = """
from millstream import Context, analysis
from words import louder

@analysis()
async def shout(ctx: Context, text: str) -> str:
    return louder(text)
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project, which is the current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "mine.py").write_text(SHOUT)
    (tmp_path / "words.py").write_text("louder = str.upper")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "words", "statistics", "broken", "other"):
            del sys.modules[name]


@pytest.mark.parametrize("named", ["mine", " mine , mine,", "./mine.py", "{project}/mine.py"])
def test_the_built_in_analyses_and_those_named_are_loaded(project: Path, named: str) -> None:
    assert {"process", "text.stats", "shout"} <= set(load_analyses(named.format(project=project)))


def test_a_file_elsewhere_finds_the_modules_beside_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "else").mkdir()
    monkeypatch.chdir(project / "else")
    assert "shout" in load_analyses("../mine.py")


def test_a_module_of_the_current_directory_hides_no_other(project: Path) -> None:
    (project / "statistics.py").write_text("raise RuntimeError('the wrong one')")
    sys.modules.pop("statistics", None)
    (project / "mine.py").write_text("import statistics\nstatistics.mean([1, 2])\n" + SHOUT)
    assert "shout" in load_analyses("mine")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no.such.module", r"There is no module 'no\.such\.module' in .*{project}.*\./my_analyses\.py"),
        ("./none.py", r"There is no file {project}/none\.py"),
        ("broken", r"broken: No module named 'not_installed'"),
        ("other", r"other: cannot import name 'nothing' from 'words'"),
        ("./json.py", r"{project}/json\.py: another module is called 'json'"),
        ("unfinished", r"unfinished: SyntaxError: .*\(unfinished\.py, line 1\)"),
        ("./unfinished.py", r"{project}/unfinished\.py: SyntaxError: .*\(unfinished\.py, line 1\)"),
        ("odd", r"odd: KeyError: 'HOME_OF' \({project}/odd\.py, line 2\)"),
        ("./odd.py", r"{project}/odd\.py: KeyError: 'HOME_OF' \({project}/odd\.py, line 2\)"),
        ("leaves", r"leaves: SystemExit: 3 \({project}/leaves\.py, line 1\)"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_where_it_was_looked_for(project: Path, named: str, said: str) -> None:
    (project / "broken.py").write_text("import not_installed")
    (project / "other.py").write_text("from words import nothing")
    (project / "json.py").write_text(SHOUT)
    (project / "unfinished.py").write_text("def f(:")
    (project / "odd.py").write_text("import os\nos.environ['HOME_OF']\n")
    (project / "leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(ImportError, match=said.format(project=project)):
        load_analyses(named)


def test_one_name_from_two_modules_is_refused(project: Path) -> None:
    (project / "other.py").write_text(SHOUT.replace("def shout", "def process"))
    with pytest.raises(TypeError, match=r"other: an analysis called 'process' is already there"):
        load_analyses("other")
