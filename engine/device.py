"""Device, precision and threads: the one file that sets torch's global switches."""

import os
import resource
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from ground.memory import keep_freed_memory
from ground.mistake import Mistake

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def cpu_info(field: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux says of the first core under this name; "" elsewhere (torch tells flags from 2.15 on)."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def pick_device(wanted: str) -> torch.device:
    """The device that "auto", "cuda" or "cpu" means here. Raises Mistake for "cuda" without a GPU."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Mistake("--device is cuda, but torch finds no usable NVIDIA GPU: check nvidia-smi, or use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def pick_precision(device: torch.device, wanted: str = "auto") -> str:
    """Type for "auto": bf16 where it is fast, fp16 on older CUDA, else fp32; anything else as asked.

    On a CPU bf16 is fast with AMX, and on AMD's with AVX512-BF16. An Intel Xeon that has that but no AMX, which a
    virtual machine may hide, trains faster in float32: docs/RESULTS.md, "The CPU runs". Raises Mistake for fp16 on a
    CPU, where it is slower than fp32 and has no gradient scaler.
    """
    if wanted not in ("auto", *DTYPES):
        raise ValueError(f"precision {wanted!r:.20} is unknown: it must be one of auto, {', '.join(DTYPES)}")
    if wanted == "fp16" and device.type == "cpu":
        raise Mistake("--precision is fp16 on a CPU: use bf16, fp32 or auto")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    flags, amd = cpu_info("flags").split(), cpu_info("vendor_id") == "AuthenticAMD"
    return "bf16" if "amx_bf16" in flags or (amd and "avx512_bf16" in flags) else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Mixed precision for the forward pass; nothing for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def configure(device: torch.device, threads: int = 0, deterministic: bool = False) -> int:
    """Set torch's threads (0: one per core), which it returns, and on CUDA its fast paths.

    With `deterministic`, CUDA keeps to algorithms that repeat bit for bit; call it before anything runs there.
    Raises Mistake for more threads than cores, which would wait for each other at every operation.
    """
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise Mistake(f"--threads is {threads}: it must be 0 to {cores}, the cores that this process may use")
    threads = threads or cores
    torch.set_num_threads(threads)
    # Every resolution and mode is a graph; past torch's default of 8 it would go on uncompiled, silently.
    torch._dynamo.config.recompile_limit = 64
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        # What is in float32 here, the head, is meant to be exact.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        torch.backends.cudnn.benchmark = True
        if deterministic:
            from torch._inductor import config as inductor

            torch.backends.cudnn.benchmark = False  # it picks by speed, anew in each process
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True)
            inductor.deterministic = True  # torch.compile, too, picks some kernels by their time
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on the GPU, or the most memory the process had on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

