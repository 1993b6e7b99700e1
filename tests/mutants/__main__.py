"""Make each change in a copy of the tree and see that its test fails there: `python -m tests.mutants [NAME ...]`."""

import os
import shutil
import subprocess
import sys
import tempfile
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


def run(directory: Path, *tests: str, timeout_s: float = 150) -> tuple[int, str]:
    """Run tests on the copy: the exit code, and the end of what was printed."""
    path = os.pathsep.join(str(directory / part) for part in ("api", "worker", "shared", "."))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "it hangs"
    return done.returncode, done.stdout[-1500:] + done.stderr[-500:]


def killed(directory: Path, mutant: Mutant) -> tuple[bool, str]:
    """Make a change and take it back. Does its test fail in between? And what did it print?"""
    file = directory / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    code, output = run(directory, mutant.test)
    file.write_text(text)
    return code in (FAILED, TIMED_OUT), output


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name.startswith(tuple(names))]
    if not chosen:
        print(f"No change is called {' or '.join(names)}.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="millstream-mutants-") as name:
        copied(directory := Path(name))
        code, output = run(directory, *dict.fromkeys(mutant.test for mutant in chosen), timeout_s=1200)
        if code:
            print(f"The tests do not pass without any change, so they can show nothing.\n{output}", file=sys.stderr)
            return 2
        survivors = []
        for mutant in chosen:
            noticed, output = killed(directory, mutant)
            print(f"{'killed  ' if noticed else 'SURVIVED'} {mutant.name}: {mutant.promise}", flush=True)
            if not noticed:
                survivors.append(f"{mutant.name} in {mutant.file}: {mutant.test} did not fail.\n{output}")
    print("\n".join([*survivors, f"{len(chosen) - len(survivors)} of {len(chosen)} changes were noticed."]))
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
