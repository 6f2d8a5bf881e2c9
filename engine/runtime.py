"""Device, precision and threads, and what this machine is: the one file that sets torch's global switches."""

import ctypes
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from engine.interrupt import Stopped
from ground.terminal import printable

# Of DALI's, oneDNN's and the CPU's allocators, in small letters.
OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "unable to resize file",
    "resource temporarily unavailable",
)
STATISTICS = Path("/proc/stat")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(wanted: str) -> torch.device:
    """The device that "auto", "cuda" or "cpu" means here.

    Raises:
        ValueError: CUDA was asked for and torch finds none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "--device is cuda, but torch finds no usable NVIDIA GPU: check nvidia-smi, or use --device cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())


def pick_precision(device: torch.device, wanted: str = "auto") -> str:
    """Type for "auto": bf16 where it is fast, fp16 on older CUDA, else fp32; anything else as asked.

    On a CPU bf16 is fast with AMX, and on AMD's with AVX512-BF16. An Intel Xeon that has that but no AMX, which a
    virtual machine may hide, trains faster in float32: measured in docs/RESULTS.md, "The CPU runs".

    Raises:
        ValueError: it is none of DTYPES, or fp16 on a CPU, where it is slower than fp32 and has no gradient scaler.
    """
    if wanted not in ("auto", *DTYPES):
        raise ValueError(f"precision {wanted!r:.20} is unknown: it must be one of auto, {', '.join(DTYPES)}")
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("--precision is fp16 on a CPU: use bf16, fp32 or auto")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    flags, amd = cpu_info("flags").split(), cpu_info("vendor_id") == "AuthenticAMD"
    return "bf16" if "amx_bf16" in flags or (amd and "avx512_bf16" in flags) else "fp32"


def cpu_info(field: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux says of the first core under this name; "" elsewhere (torch tells of its flags only from 2.15 on)."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Mixed precision for the forward pass; nothing for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def configure(device: torch.device, threads: int = 0, deterministic: bool = False) -> int:
    """Set torch's threads and, on CUDA, its fast paths; returns the number of threads (`threads`, or one per core).

    With `deterministic`, CUDA keeps to algorithms that repeat bit for bit; call it before anything runs there.

    Raises:
        ValueError: more threads than cores, which would wait for each other at every operation.
    """
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise ValueError(f"--threads is {threads}: it must be 0 to {cores}, the cores that this process may use")
    threads = threads or cores
    torch.set_num_threads(threads)
    # Every resolution and mode is a graph of its own; past torch's default of 8 it would go on uncompiled, silently.
    torch._dynamo.config.recompile_limit = 64
    if device.type == "cpu":
        _keep_freed_memory()
    if device.type == "cuda":
        # What is in float32 here, the head, is meant to be exact.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        torch.backends.cudnn.benchmark = True
        if deterministic:
            from torch._inductor import config as inductor

            torch.backends.cudnn.benchmark = False  # it picks by speed, anew in each process
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts; CUDA's manual asks for it
            torch.use_deterministic_algorithms(True)
            inductor.deterministic = True  # torch.compile, too, picks some kernels by their time
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


def _keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next step, instead of giving them back and faulting in new pages.

    A step of width 64 at 32 pixels and batch 256 then runs 1.27 times as fast; width 32 at 20 pixels, 1.03 times.
    """
    _mallopt(M_MMAP_MAX, 0)  # no block is a mapping of its own
    _mallopt(M_TRIM_THRESHOLD, -1)  # the heap's end is never given back


def map_large_blocks() -> None:
    """Have glibc map each large block by itself again, where `configure` had it keep them together on the heap.

    For code that leaves small blocks between the large ones, as torch.profiler does: the large ones then find no gap
    on the heap, which grew by 0.9 GB a step of width 32 at 32 pixels and batch 256, and a step took three times as long
    (2 cores, Intel Xeon without AMX, 2026-11-27). Mapped, it takes 1.25 times as long and the memory stays.
    """
    _mallopt(M_MMAP_MAX, 1 << 16)  # as it is by default


def _mallopt(option: int, value: int) -> None:
    """Set what glibc's allocator does; nothing with another libc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(option, value)


def release_freed_memory() -> None:
    """Give back what `configure` has glibc keep, so that what the process holds is what it needs."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def busy_cores(seconds: float = 0.2) -> float:
    """Of the cores that this process may use, how many other programs use, while it sleeps for `seconds`.

    From the kernel's count for each core, in hundredths of a second; 0 where the kernel does not give it.
    """
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}

    def used() -> int:
        """Hundredths: as a user, nice, in the kernel and its interrupts; not idle, waiting for a disk, or stolen."""
        lines = [line.split() for line in STATISTICS.read_text().splitlines()] if STATISTICS.exists() else []
        return sum(int(line[i]) for line in lines if line[0] in ours for i in (1, 2, 3, 6, 7))

    before = used()
    time.sleep(seconds)
    return (used() - before) / 100 / seconds


@contextmanager
def memory_advice(batch_size: int, device: torch.device) -> Iterator[None]:
    """Turns running out of memory, the GPU's or the machine's, into a ValueError that names a batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory on {device} with --batch-size {batch_size}: try --batch-size {max(2, batch_size // 2)}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether it says so: Python's, CUDA's, or the RuntimeErrors of DALI's and the CPU's allocators."""
    text = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in text for words in OUT_OF_MEMORY)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on the GPU, or the most memory the process had on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment_card(device: torch.device) -> dict[str, str]:
    """What a number must carry to mean something: hardware, driver and versions."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(*names: str) -> str:
        for name in names:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "not installed"

    card = {
        "cpu": cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "dali": installed("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    }
    if device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        text = driver.read_text().split("\n")[0] if driver.exists() else "unknown"
        card |= {
            "gpu": torch.cuda.get_device_name(device),
            "driver": next((word for word in text.split() if word[0].isdigit() and "." in word), text),
            "cuda": str(torch.version.cuda),
        }
    return card


def run(main: Callable[[Sequence[str]], None], entry: str) -> NoReturn:
    """Run an entry on the command line and exit: 0; 2 after one line about what the user can mend; 128 and the
    signal's number after one that stopped it (130 for Ctrl-C)."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"{entry}: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        advice = "a narrower network or smaller batches need less; or end other programs"
        print(f"{entry}: out of memory: {advice}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"{entry}: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print(f"{entry}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def describe(error: Exception) -> str:
    """An error in one line, the file first where it has one, without control characters that a name may hold."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = (f"{error.filename}: " if error.filename else "") + error.strerror
    return printable(" ".join(text.split()))
