"""What this process computes on: device, precision, threads and its place among the ranks, decided once."""

import os
from dataclasses import dataclass, replace
from typing import Self

import torch

from engine.config import Config
from engine.device import configure, environment_card, pick_precision
from engine.distributed import ALONE, World
from ground.cpu import busy_cores


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
        """What "auto" in the config means here; sets torch's threads and fast paths.

        Raises:
            Mistake: the device is not here; or as `on`.
        """
        device, threads = world.device(config.device), world.threads(config.threads)
        machine = cls.on(device, config.precision, threads, config.deterministic)
        return replace(machine, compiled=config.compiles(device.type == "cuda"), world=world)

    @classmethod
    def on(cls, device: torch.device, precision: str = "auto", threads: int = 0, deterministic: bool = False) -> Self:
        """What "auto", and 0 threads, mean on a device; sets torch's threads and fast paths.

        Raises:
            Mistake: the device cannot compute in that precision, or there are fewer cores.
        """
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
        return environment_card(self.device) | self.world.card()

    def choices(self) -> dict[str, str]:
        """What may change the rounding of results besides the card's: to compare with another run's."""
        return {"threads": str(self.threads), "precision": self.precision, "compiled": str(self.compiled)}
