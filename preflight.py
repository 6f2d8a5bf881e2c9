"""Says in one line what this machine lacks, before anything heavy is imported or downloaded.

Entries call these functions first; the Makefile runs `python preflight.py setup --venv .venv` before it installs.
Each returns when all is well, else prints one line on stderr and exits with code 2. Standard library alone, and only
what Python 3.6 has: an old interpreter must get as far as the line about it.
"""

import argparse
import ctypes
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "numpy", "matplotlib", "rich", "tensorboard", "tyro", "PIL", "jinja2")
EXPORT = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".safetensors": ("safetensors",)}
SPACE_GB = 5  # 4.3 are too few to train the smallest network (2 cores, torch 2.15)
FREE_GB = 10  # the environment takes 6.4 GB, and pip holds downloads beside it
DALI = (
    "DALI is the package nvidia-dali-cuda130 (nvidia-dali-cuda120 for drivers below r580; plain nvidia-dali is only a "
    "placeholder), for Linux on x86-64 or aarch64 (Windows: through WSL) and Python 3.11 to 3.14"
)


def require_environment(entry: str) -> None:
    """Exit unless this Python has our packages; `entry` is what was started: "gradcam.py", or "-m bench"."""
    _open_standard_files()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while packages are imported: the end, and no traceback
    if sys.platform == "linux":
        import resource

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if 0 <= space < SPACE_GB * 1e9:
            left = f"{space / 1e9:.1f} GB of address space"
            _stop(f"ulimit -v leaves {left}, torch and DALI take {SPACE_GB} GB: raise it")
    own = ROOT / ".venv"
    venv = os.path.relpath(str(own))
    started = os.path.relpath(str(ROOT / entry)) if entry.endswith(".py") else entry
    remedy = f"run `source {venv}/bin/activate` first, or start `{venv}/bin/python {started}`"
    if not (own / "requirements.stamp").exists() or Path(sys.prefix).resolve() == own.resolve():
        remedy = f"`make train` or `make test` sets up .venv; then {remedy}"
    _require(entry, [name for name in PACKAGES if importlib.util.find_spec(name) is None], remedy)


def require_dali() -> None:
    """Exit unless DALI itself can be imported: a bare `nvidia` or `nvidia.dali` namespace is not it."""
    if sys.flags.optimize > 1:
        _stop("NVIDIA DALI does not work without docstrings: unset PYTHONOPTIMIZE, and leave out -OO")
    if not _origin("nvidia.dali"):
        _stop(f"NVIDIA DALI is not installed in {sys.executable}: {DALI}")


def require_export(kind: str) -> None:
    """Exit unless this Python has what a file of that kind, ".onnx" for one, is written and checked with."""
    remedy = "`make export` installs what it needs, or `pip install -r requirements-export.txt`"
    _require("export.py", [name for name in EXPORT.get(kind, ()) if not _origin(name)], remedy)


def check_driver(device: str = "auto", version_file: str = "/proc/driver/nvidia/version") -> None:
    """Exit if an NVIDIA driver is here that is too old for the CUDA 13 packages installed, unless `device` is "cpu".

    Without this, torch sees no GPU and the training quietly takes the CPU.
    """
    if device == "cpu" or not Path(version_file).exists():
        return
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?((\d+)\.[\d.]+)", Path(version_file).read_text())
    if driver is None or int(driver.group(2)) >= 580 or _cuda_of_driver() >= 13000:
        return
    packages = _built_for_cuda_13()
    if packages:
        _stop(
            f"NVIDIA driver {driver.group(1)} is too old for {' and '.join(packages)}, built for CUDA 13: update it to "
            "r580 or later, or install nvidia-dali-cuda120 (in place of nvidia-dali-cuda130) and a CUDA 12 build of "
            "torch and torchvision, or use `--device cpu`"
        )


def check_setup(venv: str) -> None:
    """Exit unless this Python, platform and disk can hold the environment to be made at the path `venv`."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        _stop(f"{sys.executable} is Python {platform.python_version()}, not 3.11 to 3.14: choose one with PYTHON=")
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        _stop(f"this is {sys.platform} on {platform.machine()}: {DALI}")
    lacking = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if lacking:
        advice = "install python3-venv (Debian, Ubuntu), or choose another Python with PYTHON="
        _stop(f"{sys.executable} has no {' and no '.join(lacking)}: {advice}")
    place = next(path for path in [Path(venv).absolute(), *Path(venv).absolute().parents] if path.exists())
    free = shutil.disk_usage(str(place)).free / 1e9
    if free < FREE_GB:
        advice = "free some, or name an existing environment with VENV="
        _stop(f"{venv} needs {FREE_GB} GB of free disk while it is installed, {place} has {free:.1f} GB: {advice}")


def _open_standard_files() -> None:
    """What was closed (`>&-`) becomes /dev/null; a file opened later would else be what is printed to."""
    descriptor = 0
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _require(entry: str, missing: list, remedy: str) -> None:
    if missing:
        _stop(f"{entry}: {sys.executable} has no {', '.join(missing)}: {remedy}")


def _stop(line: str) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(2)


def _origin(module: str) -> str:
    """Path of the file `module` would be loaded from, found without loading it; "" if there is none."""
    known = importlib.util.find_spec(module.partition(".")[0]) and importlib.util.find_spec(module)
    return known.origin or "" if known else ""


def _built_for_cuda_13() -> list:
    torch, dali = _origin("torch"), _origin("nvidia.dali")
    cuda = re.search(r"^cuda\b.*'(\d+)", Path(torch).with_name("version.py").read_text(), re.M) if torch else None
    found = ["torch"] if cuda and int(cuda.group(1)) >= 13 else []
    if dali and any(Path(dali).parents[2].glob("nvidia_dali_cuda130-*")):
        found.append("nvidia-dali-cuda130")
    return found


def _cuda_of_driver() -> int:
    """CUDA version of the driver library, 13000 for 13.0, 0 without one; a compatibility package may raise it."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return version.value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check that this machine can hold the environment.")
    parser.add_argument("command", choices=["setup"])
    parser.add_argument("--venv", required=True, help="where the environment will be made")
    check_setup(parser.parse_args().venv)
