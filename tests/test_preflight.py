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
from unittest.mock import Mock

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
    assert refusal(preflight.require_environment, "train.py") == refusal(preflight.require_dali) == ""


@pytest.mark.parametrize("package", preflight.PACKAGES)
def test_a_missing_package_names_the_activation(refusal, modules, monkeypatch, tmp_path, package):
    modules[package] = None
    project, here = tmp_path / "project", tmp_path / "here"
    monkeypatch.setattr(preflight, "ROOT", project)
    for folder in (project / ".venv", here):
        folder.mkdir(parents=True)
    (stamp := project / ".venv" / "requirements.stamp").touch()
    # The paths named fit the folder one stands in.
    for folder, up in ((project, ""), (here, "../project/")):
        monkeypatch.chdir(folder)
        line = refusal(preflight.require_environment, "gradcam.py")
        assert line.startswith(f"gradcam.py: {sys.executable} has no {package}: run `source {up}.venv/bin/activate`")
        assert line.endswith(f" start `{up}.venv/bin/python {up}gradcam.py`\n") and "make train" not in line
        assert f"{up}.venv/bin/python -m bench`" in refusal(preflight.require_environment, "-m bench")
    stamp.unlink()
    assert "`make train` or `make test` sets up .venv; then" in refusal(preflight.require_environment, "gradcam.py")


@pytest.mark.parametrize("name", ["train", "gradcam", "bench", "pipeline"])
def test_the_systems_python_gets_a_line_not_a_traceback(tmp_path, name):
    program = f"import runpy, sys; sys.path.insert(0, {str(SOURCE.parent)!r})"
    program += f"; runpy.run_module({name!r}, run_name='__main__')"
    python = [sys.executable, "-I", "-S", "-c", program]
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
    for needed in (f"driver {driver} ", "r580", "nvidia-dali-cuda120", "CUDA 12", "--device cpu") * old:
        assert needed in line


def test_where_an_old_driver_does_no_harm(refusal, old_driver, monkeypatch, tmp_path):
    def refused(device="cuda", file=old_driver):
        return refusal(preflight.check_driver, device, str(file))

    assert refused() and not refused("cpu") and not refused(file=tmp_path / "absent")
    for name, harmless in (("_cuda_of_driver", lambda: 13000), ("_built_for_cuda_13", list)):
        with monkeypatch.context() as patch:
            patch.setattr(preflight, name, harmless)
            assert not refused(), "CUDA's compatibility package, or packages built for CUDA 12"
    old_driver.write_text("in words we do not know")
    assert not refused()


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

    libraries = SimpleNamespace(cuDriverGetVersion=answer), OSError("libcuda.so.1: cannot open")
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=libraries))
    assert preflight._cuda_of_driver() == 13020
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
    "place", "linux x86_64,linux aarch64,linux ppc64le,darwin arm64,darwin x86_64,win32 AMD64".split(",")
)
def test_a_platform_without_dali_is_refused(refusal, good_machine, monkeypatch, place):
    system, machine = place.split()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(preflight.platform, "machine", lambda: machine)
    line = refusal(preflight.check_setup, ".venv")
    if place in ("linux x86_64", "linux aarch64"):
        assert not line
    else:
        assert "nvidia-dali-cuda130" in line and f"{system} on {machine}" in line


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


ENTRIES = ("preflight", "train", "gradcam", "export", "audit", "predict", "bench/__main__", "pipeline/__main__")


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_old_python_can_read_the_file_and_so_gets_to_the_line_about_it(entry):
    ast.parse((SOURCE.parent / f"{entry}.py").read_text(), feature_version=(3, 6))
