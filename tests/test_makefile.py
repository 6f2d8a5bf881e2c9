"""The Makefile installs once, only what is stale, never into a given environment, and passes flags on.

A shell script stands in for Python: it notes what it is asked, and its `-m venv` copies itself.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ".venv -m pytest -n 2 --dist worksteal"
FAKE_PYTHON = """#!/bin/sh
echo "$(basename "$(dirname "$(dirname "$0")")") $*" >> "$CALLS"
case "$*" in
"preflight.py setup"*) exit "${PREFLIGHT_EXIT:-0}" ;;
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip install"*)
    sleep "${PIP_SECONDS:-0}"
    echo "Collecting torch"
    echo "  Downloading torch-2.15.0-cp311-cp311-linux_x86_64.whl (539.1 MB)"
    exit "${PIP_EXIT:-0}" ;;
*pytest*) echo "1 failed"; exit "${PYTEST_EXIT:-0}" ;;
esac
"""


class Project:
    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "calls"
        for name in ("Makefile", "requirements.txt", "requirements-export.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, folder)
            os.utime(folder / name, (1, 1))
        self.python = folder / "system" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def start(self, *arguments, **settings):
        # What an outer make hands down must not reach this one.
        own = ("VENV", "ARGS", "GPUS", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name not in own}
        return subprocess.Popen(
            ["make", *arguments, f"PYTHON={self.python}"],
            cwd=self.folder, env={**kept, "MAKEFLAGS": "", "CALLS": str(self.log), **settings}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def make(self, *arguments, **settings):
        """(exit code, stdout, stderr, [which python and what it was asked])"""
        self.log.write_text("")
        process = self.start(*arguments, **settings)
        out, errors = process.communicate(timeout=60)
        return process.returncode, out, errors, self.log.read_text().splitlines()

    def outdate(self, name):
        """Make a requirements file newer than its stamp, whatever the resolution of the clock."""
        stamp = self.folder / ".venv" / (Path(name).stem + ".stamp")
        os.utime(stamp, (2, 2))
        os.utime(self.folder / name, (3, 3))


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def installs(calls):
    return [call.split(" -r ")[1].split()[0] for call in calls if "-m pip install" in call]


def test_train_installs_once_and_again_only_when_requirements_are_newer(project):
    code, out, _, calls = project.make("train")
    assert code == 0
    assert calls[:2] == ["system preflight.py setup --venv .venv", "system -m venv .venv"]
    assert installs(calls) == ["requirements.txt"]
    assert calls[-1] == ".venv train.py"
    assert "539.1 MB  torch-2.15.0" in out and "Collecting" not in out

    assert project.make("train")[3] == [".venv train.py"]

    project.outdate("requirements.txt")
    assert installs(project.make("train")[3]) == ["requirements.txt"]
    assert project.make("train")[3] == [".venv train.py"]


def test_test_installs_the_test_tools_too_each_with_its_own_stamp(project):
    project.make("train")
    code, _, _, calls = project.make("test")
    assert code == 0
    assert installs(calls) == ["requirements-export.txt", "requirements-dev.txt"]
    assert calls[-1] == TESTS
    assert project.make("test")[3] == [TESTS]

    for name in ("requirements-export.txt", "requirements-dev.txt", "requirements.txt"):
        project.outdate(name)
        assert name == "requirements.txt" or installs(project.make("train")[3]) == []
        assert installs(project.make("test")[3]) == [name]
    assert project.make("test")[3] == [TESTS]


def test_export_installs_what_it_needs_and_no_test_tools(project):
    assert installs(project.make("export")[3]) == ["requirements.txt", "requirements-export.txt"]
    assert project.make("export")[3] == [".venv export.py"]


def test_a_failed_pip_leaves_no_stamp_and_starts_nothing(project):
    code, _, _, calls = project.make("train", PIP_EXIT="1")
    assert code != 0
    assert not list((project.folder / ".venv").glob("*.stamp"))
    assert not any("train.py" in call for call in calls)
    assert installs(project.make("train")[3]) == ["requirements.txt"]


def test_a_refused_set_up_exits_2_and_makes_nothing(project):
    code, _, _, calls = project.make("train", PREFLIGHT_EXIT="2")
    assert code == 2
    assert calls == ["system preflight.py setup --venv .venv"]
    assert not (project.folder / ".venv").exists()


def test_two_makes_at_once_install_once(project):
    if shutil.which("flock") is None:
        pytest.skip("needs flock, which is not on this machine")
    both = [project.start("train", PIP_SECONDS="0.3") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert installs(project.log.read_text().splitlines()) == ["requirements.txt"]


def test_a_given_environment_may_have_spaces_in_its_name(project):
    shutil.copytree(project.folder / "system", project.folder / "my venv")
    code, _, errors, calls = project.make("train", "VENV=my venv", "ARGS=smoke")
    assert (code, errors, calls) == (0, "", ["my venv train.py smoke"])


def test_a_given_environment_without_python_is_named(project):
    code, _, errors, calls = project.make("train", "VENV=elsewhere")
    assert code == 2 and not calls
    line, of_make = errors.splitlines()
    assert "VENV=elsewhere is not an environment" in line and "Error 2" in of_make


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("train", "train.py"),
        ("train GPUS=4", "-m torch.distributed.run --standalone --nproc-per-node=4 train.py"),
        ("gallery", "gradcam.py --ckpt model.pt --out gallery.png"),
        ("audit", "audit.py"),
        ("export", "export.py"),
        ("predict", "predict.py --ckpt model.pt"),
        ("bench", "-m bench"),
        ("profile", "-m bench profile"),
        ("test", "-m pytest -n 2 --dist worksteal"),
        ("test-all", "-m pytest -m  -n 2 --dist worksteal"),
        ("crash-test", "tests/crash.py"),
        ("planted", "tests/planted.py"),
        ("fuzz", "tests/fuzz.py"),
        ("check", "-m pytest -n 2 --dist worksteal"),
    ],
)
def test_args_are_passed_on_and_nothing_is_installed_into_a_given_environment(project, target, command):
    given = "VENV=system", "ARGS=--epochs 5 --name 'two words'"
    code, _, _, calls = project.make(*target.split(), *given)
    assert code == 0
    assert calls[-1] == f"system {command} --epochs 5 --name two words"
    assert not installs(calls) and not any("preflight" in call or "-m venv" in call for call in calls)
    assert all(call.startswith("system ") for call in calls)
    assert not (project.folder / ".venv").exists()


def test_a_failed_test_fails_make(project):
    code, out, _, _ = project.make("test", PYTEST_EXIT="1")
    assert code != 0 and out.endswith("1 failed\n")


def test_clean_keeps_results_and_a_given_environment(project):
    kept = ["model.pt", "gallery.png", "runs/1/log.jsonl", "cifar.tgz", "system/bin/python"]
    gone = [".venv/requirements.stamp", ".pytest_cache/x", "engine/__pycache__/model.pyc"]
    for name in kept[:-1] + gone:
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).write_text("")
    assert project.make("clean", "VENV=system")[0] == 0
    assert [name for name in kept + gone if (project.folder / name).exists()] == kept


def test_the_default_lists_every_target(project):
    code, out, _, calls = project.make()
    assert code == 0 and not calls
    listed = [line.split()[0] for line in out.splitlines()[1:]]
    known = "audit bench check clean crash-test export fuzz gallery gpu-check help planted predict profile test"
    known += " test-all train"
    assert sorted(listed) == known.split()
    assert all(len(line.split()) >= 3 for line in out.splitlines()[1:])
