"""What this machine could do at most: its measured rate of large matrix products, as training images per second."""

from itertools import repeat

import torch

from bench.core.clock import Budget, measure
from bench.core.record import Row
from bench.core.session import Say
from bench.core.setup import Setup
from engine.cost import training_flops
from engine.device import DTYPES
from ground.spread import Spread

PART = "roof"


def measure_roof(setup: Setup, say: Say, best: float | None) -> list[Row]:
    """The roof, and the share of it that training reached at best, in images/s (None: not measured)."""
    flops = training_flops(setup.model(), setup.side)
    rows = [Row(PART, f"FLOPs of a training image, {setup.side} px", "GFLOP", flops / 1e9, note="a multiply-add is 2")]
    names = ["fp32", "bf16", "fp16"] if setup.cuda else sorted({"fp32", setup.precision})
    rates: dict[str, Spread] = {}
    for name in names:
        say(f"matrix products in {name}")
        rates[name] = matrix_rate(DTYPES[name], setup.device, setup.budget(2))
        note = "without TF32, which convolutions take" if setup.cuda and name == "fp32" else ""
        rows.append(Row.of(PART, f"matrix rate, {name}", "TFLOP/s", rates[name], note))
    arithmetic = 1e12 * rates[setup.precision].median / flops
    rows.append(Row(PART, f"arithmetic roof, {setup.precision}", "images/s", arithmetic))
    name = f"model FLOPs utilisation, {setup.precision}"
    if best is None:
        return [*rows, Row(PART, name, "%", note="needs the part e2e or compute")]
    note = f"{best:,.0f} images/s of {arithmetic:,.0f}"
    return [*rows, Row(PART, name, "%", 100 * best / arithmetic, note=note)]


def matrix_rate(dtype: torch.dtype, device: torch.device, budget: Budget) -> Spread:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    one_product = repeat((a, b[:1]))  # the clock counts the second's length: 1
    rate = measure(one_product, lambda a, _: torch.mm(a, b, out=out), device, budget)
    return Spread(*(2e-12 * side**3 * each for each in (rate.median, rate.q1, rate.q3)))
