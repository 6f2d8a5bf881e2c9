"""What this process computes on: device, precision, threads, its place among the ranks; decided once."""

import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

import torch

from engine.config import Config
from engine.device import configure, cpu_info, pick_precision
from engine.distributed import ALONE, World

CORE_TIMES = Path("/proc/stat")


def busy_cores(seconds: float = 0.2) -> float:
    """How many of this process's cores other programs use while it sleeps; 0 where the kernel does not say."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}

    def used() -> int:
        """Hundredths of a second: user, nice, kernel, interrupts; not idle, waiting for a disk, or stolen."""
        text = CORE_TIMES.read_text() if CORE_TIMES.exists() else ""
        lines = [line.split() for line in text.splitlines()]
        return sum(int(line[i]) for line in lines if line[0] in ours for i in (1, 2, 3, 6, 7))

    before = used()
    time.sleep(seconds)
    return (used() - before) / 100 / seconds


@dataclass(frozen=True)
class Machine:
    device: torch.device
    precision: str = "fp32"
    """bf16, fp16 or fp32: the type of convolutions."""
    threads: int = 1
    """CPU threads, of torch and of DALI each."""
    compiled: bool = False
    """Whether training runs through torch.compile."""
    world: World = ALONE

    @classmethod
    def of(cls, config: Config, world: World = ALONE) -> Self:
        """As `on`, for a config and this rank. Raises Mistake also where its device is not here."""
        device, threads = world.device(config.device), world.threads(config.threads)
        machine = cls.on(device, config.precision, threads, config.deterministic)
        return replace(machine, compiled=config.compiles(device.type == "cuda"), world=world)

    @classmethod
    def on(cls, device: torch.device, precision: str = "auto", threads: int = 0, deterministic: bool = False) -> Self:
        """What "auto", and 0 threads, mean on a device; sets torch's threads and fast paths, or raises Mistake."""
        return cls(device, pick_precision(device, precision), configure(device, threads, deterministic))

    def crowded(self) -> str:
        """What to do where other programs use the cores that training on the CPU has threads for; else "".

        Every operation waits for its slowest thread. On two cores (AMD EPYC) beside one busy program, a step of the
        preset `cpu` took 46 times as long with two threads at 16 px and 18 times at 32.
        """
        if self.device.type != "cpu" or self.threads == 1 or self.world.size > 1:
            return ""
        busy, cores = busy_cores(), len(os.sched_getaffinity(0))
        if busy < cores - self.threads + 0.5:
            return ""
        return (
            f"other programs keep {busy:.1f} of the {cores} cores busy, and {self.threads} threads wait for each other "
            f"at every step: end those programs, or use --threads {max(1, int(cores - busy + 0.5))}"
        )

    def card(self) -> dict[str, str]:
        """What a number must carry to mean something: hardware, driver, versions, processes."""
        card = {
            "cpu": cpu_info("model name") or platform.processor() or platform.machine(),
            "cores": str(len(os.sched_getaffinity(0))),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "dali": "not installed",
        }
        for package in ("nvidia-dali-cuda120", "nvidia-dali-cuda130"):  # with both, the newer counts
            with suppress(PackageNotFoundError):
                card["dali"] = version(package)
        if self.device.type == "cuda":
            driver = Path("/proc/driver/nvidia/version")
            text = driver.read_text().split("\n")[0] if driver.exists() else "unknown"
            card |= {
                "gpu": torch.cuda.get_device_name(self.device),
                "driver": next((word for word in text.split() if word[0].isdigit() and "." in word), text),
                "cuda": str(torch.version.cuda),
            }
        return card | ({"processes": str(self.world.size)} if self.world.size > 1 else {})

    def choices(self) -> dict[str, str]:
        """What, besides the card, may change the rounding of results."""
        return {"threads": str(self.threads), "precision": self.precision, "compiled": str(self.compiled)}
