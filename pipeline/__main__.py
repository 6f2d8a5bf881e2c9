"""`python -m pipeline` prepares the CIFAR-10 cache and reports what is in it."""

import preflight

preflight.require_environment("-m pipeline")

import argparse
import math
import sys
import time

import numpy as np

from pipeline.cifar10 import cache, facts
from pipeline.split import channel_statistics


def main() -> int:
    """Prepare the cache, report on it, and return the exit code."""
    description = "Prepare the verified CIFAR-10 cache and report on it. CIFAR10_DIR names the data folder."
    argparse.ArgumentParser(prog="python -m pipeline", description=description).parse_args()
    start = time.perf_counter()
    try:
        path, source = cache.prepare()
        seconds = time.perf_counter() - start
        train, test = cache.load("train"), cache.load("test")
    except (ValueError, OSError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipeline: interrupted", file=sys.stderr)
        return 130
    print(f"source     {source}")
    print(f"cache      {path}, {path.stat().st_size / 1e6:.1f} MB, ready in {seconds:.1f} s")
    for name, shape in facts.SHAPES.items():
        megabytes, digest = math.prod(shape) / 1e6, facts.SHA256[name][:16]
        print(f"{name:<14} {shape!s:<20} uint8 {megabytes:7.2f} MB  SHA-256 {digest}... ok")
    mean, deviation = channel_statistics(train.images)
    print("mean       " + " ".join(f"{value:.8f}" for value in mean) + "  (training set, red green blue, of 1.0)")
    print("deviation  " + " ".join(f"{value:.8f}" for value in deviation))
    counts = (np.bincount(split.labels, minlength=len(split.classes)) for split in (train, test))
    classes = ", ".join(f"{name} {n}+{m}" for name, n, m in zip(train.classes, *counts, strict=True))
    print(f"classes    {classes}  (train+test)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
