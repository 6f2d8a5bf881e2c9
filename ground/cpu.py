"""What Linux says of the processor: its name and flags, and how busy other programs keep it."""

import os
import time
from pathlib import Path

STATISTICS = Path("/proc/stat")


def cpu_info(field: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux says of the first core under this name; "" elsewhere (torch tells of its flags only from 2.15 on)."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def busy_cores(seconds: float = 0.2) -> float:
    """How many of the cores that this process may use are used by other programs, while it sleeps for `seconds`.

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
