"""What a very large folder of photographs costs before its first batch: time, memory, bytes on the disk.

    python -m tests.million --pictures 1000000 --side 128 --folder /somewhere/large

Makes the pictures, each of its own content, where they are not there yet; then opens them as train.py does, each time
in a process of its own: first with nothing in the cache, then again. The last line on stdout is JSON.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from pipeline.dali import DaliLoader
from pipeline.dataset import open_dataset
from pipeline.plan import Plan

CLASSES, IN_A_FOLDER = 100, 10_000


def make(folder: Path, count: int, side: int) -> None:
    """JPEGs of 4:3, of some shapes; what follows the picture's end makes each another file."""
    bodies = []
    for seed in range(64):
        levels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(levels).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=90)
        bodies.append(buffer.getvalue())
    for start in range(0, count, IN_A_FOLDER):
        place = folder / f"class{start // IN_A_FOLDER % CLASSES:03}"
        place.mkdir(parents=True, exist_ok=True)
        for i in range(start, min(start + IN_A_FOLDER, count)):
            (place / f"{i}.jpg").write_bytes(bodies[i % len(bodies)] + b"%d" % i)


def look(folder: Path, side: int) -> dict[str, float]:
    """Open the pictures, as train.py does, and take 20 batches."""
    start = perf_counter()
    train, validation = open_dataset(str(folder), side).splits(validate=True)
    opened = perf_counter() - start
    plan = Plan.of(train, batch_size=256, crop_area=0.35, flip="random")
    loader = DaliLoader(train, plan, torch.device("cpu"), 2, lambda epoch: side)
    start = perf_counter()
    for _, (images, _labels) in zip(range(20), loader.epoch(0), strict=False):
        assert images.shape == (256, 3, side, side)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "training": len(train), "validation": len(validation), "seconds": opened,
        "batches_seconds": perf_counter() - start, "gigabytes": memory * 1024 / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=128, help="of the square, and of the made pictures' shorter side")
    parser.add_argument("--folder", type=Path, required=True, help="where they are made, and the cache beside them")
    parser.add_argument("--look", action="store_true", help="only open them, in this process")
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(options.folder / "pictures", options.side)))
        return
    if not (options.folder / "pictures").exists():
        make(options.folder / "pictures", options.pictures, options.side)
    result: dict[str, object] = {}
    for name in ("first", "again"):
        environment = os.environ | {"XDG_CACHE_HOME": str(options.folder / "cache")}
        flags = ["--look", f"--folder={options.folder}", f"--side={options.side}"]
        command = [sys.executable, "-m", "tests.million", *flags]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(done.stdout.splitlines()[-1])
    sizes = [file.stat().st_size for file in (options.folder / "cache").rglob("*.pictures")]
    print(json.dumps(result | {"store_gigabytes": max(sizes) / 1e9}))


if __name__ == "__main__":
    main()
