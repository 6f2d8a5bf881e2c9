"""What this machine could do at most: its measured matrix rate and copy bandwidth, as training images per second.

FLOPs and bytes of a training image are counted from the model (engine/cost.py), and the roofs are those of perfect
matrix products and perfect copies of a size that suits the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.core.clock import Budget, Marks, Spread, quartiles
from bench.core.record import Row
from bench.core.setup import Say, Setup
from engine import runtime
from engine.cost import training_flops, training_traffic

PART = "roof"


def measure_roof(setup: Setup, say: Say, trained: float | None) -> list[Row]:
    """The roofs, and the share of them that `trained` images/s reached (None: not measured)."""
    model = setup.model()
    dtype = runtime.DTYPES[setup.precision]
    say("counting FLOPs and bytes of a training image")
    flops = training_flops(model, setup.side)
    traffic = training_traffic(model, setup.side, dtype)
    rows = [
        Row(PART, f"FLOPs of a training image, {setup.side} px", "GFLOP", flops / 1e9, note="a multiply-add is 2"),
        Row(PART, f"bytes of a training image, {setup.precision}, fused", "MB", traffic.least / 1e6, note="least"),
        Row(PART, f"bytes of a training image, {setup.precision}, eager", "MB", traffic.eager / 1e6),
    ]
    names = ["fp32", "bf16", "fp16"] if setup.cuda else sorted({"fp32", setup.precision})
    rates: dict[str, Spread] = {}
    for name in names:
        say(f"matrix products in {name}")
        rates[name] = matrix_rate(runtime.DTYPES[name], setup.device, setup.budget(2))
        note = "without TF32, which convolutions take" if setup.cuda and name == "fp32" else ""
        rows.append(Row.of(PART, f"matrix rate, {name}", "TFLOP/s", _scaled(rates[name], 1e-12), note))
    say("copies")
    bandwidth = copy_bandwidth(setup.device, setup.budget(1))
    rows.append(Row.of(PART, "copy bandwidth, read and write", "GB/s", _scaled(bandwidth, 1e-9)))
    arithmetic = rates[setup.precision].median / flops
    fused, eager = bandwidth.median / traffic.least, bandwidth.median / traffic.eager
    lower = "arithmetic" if arithmetic <= fused else "memory"
    rows += [
        Row(PART, f"arithmetic roof, {setup.precision}", "images/s", arithmetic),
        Row(PART, "memory roof, fused", "images/s", fused, note=f"the {lower} roof is the lower one"),
        Row(PART, "memory roof, eager", "images/s", eager),
    ]
    used = f"model FLOPs utilisation, {setup.precision}"
    if trained is None:
        return [*rows, Row(PART, used, "%", note="needs the part e2e or compute")]
    note = f"{trained:,.0f} images/s of {arithmetic:,.0f}"
    return [*rows, Row(PART, used, "%", 100 * trained / arithmetic, note=note)]


def matrix_rate(dtype: torch.dtype, device: torch.device, budget: Budget) -> Spread:
    """FLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return _scaled(_calls_per_second(lambda: torch.mm(a, b, out=out), device, budget), 2 * side**3)


def copy_bandwidth(device: torch.device, budget: Budget) -> Spread:
    """Bytes read and written a second when a tensor far larger than any cache is copied."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target: Tensor = torch.ones_like(source)
    return _scaled(_calls_per_second(lambda: target.copy_(source), device, budget), 2 * size)


def _calls_per_second(call: Callable[[], object], device: torch.device, budget: Budget) -> Spread:
    def lap(calls: int) -> float:
        marks = Marks(device, 2)
        marks.mark()
        for _ in range(calls):
            call()
        marks.mark()
        return marks.gaps()[0] / calls

    lap(2)  # warm
    calls = max(1, round(budget.seconds / budget.laps / lap(1)))
    return quartiles([1 / lap(calls) for _ in range(budget.laps)])


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.q1 * factor, spread.q3 * factor)
