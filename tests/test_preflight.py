"""preflight.py: each lack of this machine is one line with its remedy and exit code 2; nothing else is said."""

import ast
import ctypes
import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

import preflight

SOURCE = Path(preflight.__file__)
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Oct 25 18:27:31 UTC 2023\nGCC version:  gcc 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (builder@host)\n"


@pytest.fixture
def refusal(capsys):
    """Call it with a function: the one line it prints before it exits with 2, or "" where it returns in silence."""

    def line_of(check, *arguments):
        code = None
        try:
            check(*arguments)
        except SystemExit as stop:
            code = stop.code
        out, errors = capsys.readouterr()
        assert out == ""
        assert (code, errors.count("\n")) == ((2, 1) if errors else (None, 0))
        return errors

    return line_of


@pytest.fixture
def modules(monkeypatch):
    """Names of modules that cannot be found (value None), or the file each is found in; others are as they are."""
    found: dict[str, str | None] = {}
    real = importlib.util.find_spec
    spec = {name: real(name) for name in preflight.PACKAGES}

    def find(name):
        if name not in found:
            return spec.get(name) or real(name)
        return found[name] and ModuleSpec(name, None, origin=found[name])

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return found


@pytest.fixture
def old_driver(monkeypatch, tmp_path):
    """A version file of an old driver, with packages built for CUDA 13 and no driver library to say otherwise."""
    monkeypatch.setattr(preflight, "_built_for_cuda_13", lambda: ["torch"])
    monkeypatch.setattr(preflight, "_cuda_of_driver", lambda: 12080)
    file = tmp_path / "version"
    file.write_text(OPEN.format("570.86.15"))
    return file


def test_a_complete_environment_is_not_remarked_upon(refusal):
    assert refusal(preflight.require_environment, "train.py") == ""
    assert refusal(preflight.require_dali) == ""


@pytest.mark.parametrize("package", preflight.PACKAGES)
def test_a_missing_package_names_the_activation(refusal, modules, monkeypatch, tmp_path, package):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    modules[package] = None
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "requirements.stamp").touch()
    line = refusal(preflight.require_environment, "gradcam.py")
    assert line.startswith(f"gradcam.py: {sys.executable} has no {package}: ")
    assert "source .venv/bin/activate" in line and ".venv/bin/python gradcam.py" in line
    assert "make train" not in line
    assert ".venv/bin/python -m bench`" in refusal(preflight.require_environment, "-m bench")

    (tmp_path / ".venv" / "requirements.stamp").unlink()
    assert "`make train` or `make test` sets up .venv; then" in refusal(preflight.require_environment, "gradcam.py")


def test_the_paths_named_fit_the_folder_one_stands_in(refusal, modules, monkeypatch, tmp_path):
    modules["torch"] = None
    monkeypatch.setattr(preflight, "ROOT", tmp_path / "project")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    line = refusal(preflight.require_environment, "gradcam.py")
    assert "../project/.venv/bin/python ../project/gradcam.py`" in line
    assert "../project/.venv/bin/python -m bench`" in refusal(preflight.require_environment, "-m bench")


@pytest.mark.parametrize(
    "program",
    [
        "import preflight; preflight.require_environment('gradcam.py'); import torch",
        *(
            f"import runpy; runpy.run_module({name!r}, run_name='__main__')"
            for name in ("train", "gradcam", "bench", "pipeline")
        ),
    ],
)
def test_the_systems_python_gets_a_line_not_a_traceback(tmp_path, program):
    python = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {program}"]
    ended = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "/bin/activate" in ended.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_what_an_export_needs_is_named_for_its_kind_alone(refusal, modules, package):
    modules[package] = None
    line = refusal(preflight.require_export, ".onnx")
    assert line.startswith(f"export.py: {sys.executable} has no {package}: ")
    assert "`make export`" in line and "pip install -r requirements-export.txt" in line
    assert refusal(preflight.require_export, ".pt2") == refusal(preflight.require_export, ".safetensors") == ""


@pytest.mark.parametrize("found", [{"nvidia": None}, {"nvidia.dali": None}, {"nvidia.dali": ""}])
def test_dali_absent_or_a_placeholder(refusal, modules, found):
    modules.update(found)
    line = refusal(preflight.require_dali)
    for needed in ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "Linux", "x86-64", "aarch64", "WSL", "3.11 to 3.14"):
        assert needed in line


@pytest.mark.parametrize("text", [CLOSED, OPEN])
@pytest.mark.parametrize(("driver", "old"), [("535.104.05", 1), ("579.99", 1), ("580.65.06", 0), ("1000.1", 0)])
def test_only_a_driver_below_r580_is_refused(refusal, old_driver, text, driver, old):
    old_driver.write_text(text.format(driver))
    line = refusal(preflight.check_driver, "auto", str(old_driver))
    assert bool(line) == old
    if old:
        for needed in (f"driver {driver} ", "r580", "nvidia-dali-cuda120", "CUDA 12", "--device cpu"):
            assert needed in line


def test_the_driver_does_not_matter_on_the_cpu(refusal, old_driver):
    assert refusal(preflight.check_driver, "cuda", str(old_driver))
    assert not refusal(preflight.check_driver, "cpu", str(old_driver))


def test_no_driver_is_no_mistake(refusal, old_driver, tmp_path):
    assert not refusal(preflight.check_driver, "auto", str(tmp_path / "absent"))
    old_driver.write_text("in words we do not know")
    assert not refusal(preflight.check_driver, "auto", str(old_driver))


def test_an_old_driver_with_cudas_compatibility_package_is_accepted(refusal, old_driver, monkeypatch):
    monkeypatch.setattr(preflight, "_cuda_of_driver", lambda: 13000)
    assert not refusal(preflight.check_driver, "auto", str(old_driver))


def test_packages_built_for_cuda_12_accept_an_old_driver(refusal, old_driver, monkeypatch):
    monkeypatch.setattr(preflight, "_built_for_cuda_13", list)
    assert not refusal(preflight.check_driver, "auto", str(old_driver))


@pytest.mark.parametrize(
    ("cuda", "dali", "expected"),
    [
        ("'13.2'", "cuda130", ["torch", "nvidia-dali-cuda130"]),
        ("'12.8'", "cuda130", ["nvidia-dali-cuda130"]),
        ("'13.0'", "cuda120", ["torch"]),
        ("'12.8'", "cuda120", []),
        ("None", "cuda120", []),
    ],
)
def test_what_was_built_for_cuda_13_is_read_without_importing_it(modules, tmp_path, cuda, dali, expected):
    for package in ("torch", "nvidia/dali"):
        (tmp_path / package).mkdir(parents=True)
        modules[package.replace("/", ".")] = str(tmp_path / package / "__init__.py")
    modules["nvidia"] = str(tmp_path / "nvidia")
    (tmp_path / f"nvidia_dali_{dali}-2.4.0.dist-info").mkdir()
    version = f"__all__ = ['cuda']\n__version__ = '2.15.0+cu132'\ncuda: Optional[str] = {cuda}\nhip = None\n"
    (tmp_path / "torch" / "version.py").write_text(version)
    assert preflight._built_for_cuda_13() == expected


def test_torchs_own_version_file_is_read_right(modules):
    import torch

    modules["nvidia.dali"] = None
    assert preflight._built_for_cuda_13() == (["torch"] if int((torch.version.cuda or "0").split(".")[0]) >= 13 else [])


def test_the_driver_library_is_asked_for_its_cuda_version(monkeypatch):
    def answer(pointer):
        pointer._obj.value = 13020

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=answer))
    assert preflight._cuda_of_driver() == 13020

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert preflight._cuda_of_driver() == 0


@pytest.fixture
def good_machine(monkeypatch):
    disk = SimpleNamespace(gb=10.5, asked="")

    def disk_usage(path):
        disk.asked = path
        return SimpleNamespace(free=disk.gb * 1e9)

    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(preflight.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return disk


@pytest.mark.parametrize("minor", range(8, 17))
def test_python_3_11_to_3_14(refusal, good_machine, monkeypatch, minor):
    monkeypatch.setattr(sys, "version_info", (3, minor, 0))
    line = refusal(preflight.check_setup, ".venv")
    assert bool(line) == (not 11 <= minor <= 14)
    assert not line or ("3.11 to 3.14" in line and "PYTHON=" in line and sys.executable in line)


@pytest.mark.parametrize(
    ("system", "machine", "ok"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("linux", "ppc64le", False),
        ("darwin", "arm64", False),
        ("darwin", "x86_64", False),
        ("win32", "AMD64", False),
    ],
)
def test_a_platform_without_dali_is_refused(refusal, good_machine, monkeypatch, system, machine, ok):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(preflight.platform, "machine", lambda: machine)
    line = refusal(preflight.check_setup, ".venv")
    assert bool(line) != ok
    assert ok or ("nvidia-dali-cuda130" in line and f"{system} on {machine}" in line)


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_python_without_venv(refusal, good_machine, modules, module):
    modules[module] = None
    line = refusal(preflight.check_setup, ".venv")
    assert f"has no {module}" in line and "python3-venv" in line


@pytest.mark.parametrize("gb", [0, 9.9, 10, 100])
def test_less_than_10_gb_free_where_the_environment_will_be(refusal, good_machine, tmp_path, gb):
    good_machine.gb = gb
    line = refusal(preflight.check_setup, str(tmp_path / "not" / "yet" / ".venv"))
    assert good_machine.asked == str(tmp_path)
    assert bool(line) == (gb < 10)
    assert not line or ("10 GB" in line and f"{gb:.1f} GB" in line)


ENTRIES = ("preflight", "train", "gradcam", "export", "audit", "bench/__main__", "pipeline/__main__")


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_old_python_can_read_the_file_and_so_gets_to_the_line_about_it(entry):
    ast.parse((SOURCE.parent / f"{entry}.py").read_text(), feature_version=(3, 6))
