"""What this process computes on: device, precision, threads and its place among the ranks, decided once."""

from dataclasses import dataclass
from typing import Self

import torch

from engine import runtime
from engine.config import Config
from engine.distributed import ALONE, World


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
            ValueError: the device is not here, or cannot compute in the precision that is asked for.
        """
        device = world.device(config.device)
        precision = runtime.pick_precision(device, config.precision)
        threads = runtime.configure(device, world.threads(config.threads), config.deterministic)
        return cls(device, precision, threads, config.compiles(device.type == "cuda"), world)

    def card(self) -> dict[str, str]:
        """What a number must carry to mean something: hardware, driver, versions, processes."""
        return runtime.environment_card(self.device) | self.world.card()

    def choices(self) -> dict[str, str]:
        """What may change the rounding of results besides the card's: to compare with another run's."""
        return {"threads": str(self.threads), "precision": self.precision, "compiled": str(self.compiled)}
