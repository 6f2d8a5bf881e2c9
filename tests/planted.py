"""Plants known defects, one after the other, and fails where the tests do not notice one.

    python tests/planted.py              # all of tests/planted.toml, some 10 seconds each
    python tests/planted.py checkpoint   # those of files whose path has this word

Each entry of the list names a file, a text in it (which stands there once) and what to put in its place, and the tests
that must fail then. Works on a copy: the checkout stays as it is.
"""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".toml")


def main(words: list[str]) -> int:
    defects = tomllib.loads(LIST.read_text(encoding="utf-8"))["defect"]
    chosen = [one for one in defects if all(word in one["path"] for word in words)]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in filter(None, tracked.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        for defect in chosen:
            noticed = notices(copy, defect)
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED'}  {defect['path']}: {defect['what']}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} planted defects were noticed")
    return min(1, unnoticed)


def notices(copy: Path, defect: dict[str, str]) -> bool:
    """Whether one of the named tests fails, and not because none could be run."""
    file = copy / defect["path"]
    source = file.read_text(encoding="utf-8")
    if source.count(defect["old"]) != 1:
        raise ValueError(f"{defect['path']}: what is to be replaced stands there {source.count(defect['old'])} times")
    file.write_text(source.replace(defect["old"], defect["new"]), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *defect["tests"].split()]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    finally:
        file.write_text(source, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise ValueError(f"{defect['tests']} could not be run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
