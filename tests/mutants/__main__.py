"""Make each change in a copy of the tree and see that its test fails there: `python -m tests.mutants [NAME ...]`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.mutants import ROOT, Mutant
from tests.mutants.table import MUTANTS

FAILED, TIMED_OUT = 1, 124  # pytest's exit code for "tests ran, and some failed"; ours for one that hangs


def copied(directory: Path) -> None:
    """The files that git knows or would add, so that no cache and no environment comes along."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, directory / name)


def run(directory: Path, test: str) -> tuple[int, str]:
    """Run a test on the copy: its exit code, and the end of what it printed."""
    path = os.pathsep.join(str(directory / part) for part in ("api", "worker", "shared", "."))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
    try:
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "it hangs"
    return done.returncode, done.stdout[-1500:] + done.stderr[-500:]


def survivors(mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """The changes that their test did not notice, and what it printed."""
    with tempfile.TemporaryDirectory(prefix="millstream-mutants-") as name:
        directory = Path(name)
        copied(directory)
        for mutant in mutants:
            file = directory / mutant.file
            text = file.read_text()
            file.write_text(text.replace(mutant.old, mutant.new))
            code, output = run(directory, mutant.test)
            file.write_text(text)
            print(
                f"{'killed  ' if code in (FAILED, TIMED_OUT) else 'SURVIVED'} {mutant.name}: {mutant.promise}",
                flush=True,
            )
            if code not in (FAILED, TIMED_OUT):
                yield mutant, output


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name.startswith(tuple(names))]
    if not chosen:
        print(f"No change is called {' or '.join(names)}.", file=sys.stderr)
        return 2
    left = list(survivors(chosen))
    for mutant, output in left:
        print(f"\n{mutant.name} in {mutant.file}: {mutant.test} did not fail.\n{output}")
    print(f"{len(chosen) - len(left)} of {len(chosen)} changes were noticed.")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
