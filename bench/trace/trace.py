"""Sums over a trace of torch.profiler, in the Chrome format that it exports: no torch needed, one function of a dict.

On a CPU the own time of the operators on the training thread is split; on CUDA the time of kernels, each by the
operator that launched it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ground.mistake import Mistake

RANGES = ("data", "forward", "backward", "optimizer")
# Looked for in this order in lower-case names of operators and kernels.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norm", ("batch_norm", "batchnorm", "bn_fw", "bn_bw")),
    ("convolution", ("conv", "cudnn", "wgrad", "dgrad", "fprop")),
    ("copies", ("memcpy", "memset", "copy", "aten::to", "aten::contiguous", "aten::clone", "nchwtonhwc", "nhwctonchw")),
    ("optimizer", ("optimizer", "fused_sgd", "multi_tensor", "_foreach_", "fusedsgd")),
    ("matrix products", ("addmm", "aten::mm", "linear", "gemm", "cublas")),
    (
        "elementwise",
        ("relu", "threshold", "aten::add", "aten::sub", "aten::mul", "aten::div", "addbackward", "elementwise"),
    ),
)
ORDER = ("convolution", "norm", "elementwise", "matrix products", "optimizer", "copies", "other", "loader's kernels")

Span = tuple[float, float]


@dataclass(frozen=True)
class Analysis:
    seconds: float
    """From the start of the first step to the end of the last."""
    split: dict[str, float]
    """Seconds of each kind of work, of waiting for data, and idle."""
    ranges: dict[str, float]
    """Seconds that the host spent in each of RANGES."""
    operators: list[tuple[str, float, int]]
    """Operators, on CUDA kernels: name, own seconds, calls; the largest first."""


def analyse(trace: dict[str, Any], cuda: bool) -> Analysis:
    """Sum up a trace of whole steps.

    Raises:
        ValueError: there is no step in it.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = [e for e in events if e["name"].startswith("ProfilerStep#") and e.get("cat") == "user_annotation"]
    if not steps:
        raise Mistake("the trace holds no training step")
    begin, end = min(e["ts"] for e in steps), max(e["ts"] + e["dur"] for e in steps)
    thread = (steps[0]["pid"], steps[0]["tid"])
    host = [
        e
        for e in events
        if e.get("cat") in ("cpu_op", "user_annotation") and (e["pid"], e["tid"]) == thread and begin <= e["ts"] < end
    ]
    spans = {name: [_span(e) for e in host if e["name"] == name] for name in RANGES}
    window = end - begin
    split, operators = _of_kernels(events, begin, end, spans) if cuda else _of_operators(host, window)
    found = [name for name in (*ORDER, "data wait", "idle") if name in split or name in ("data wait", "idle")]
    return Analysis(
        window / 1e6,
        {name: split.get(name, 0.0) / 1e6 for name in found},
        {name: _length(pieces) / 1e6 for name, pieces in spans.items()},
        sorted(((n, t / 1e6, c) for n, (t, c) in operators.items()), key=lambda row: -row[1]),
    )


def kind(name: str) -> str:
    """The kind of work that an operator or kernel of that name does, "" if the name does not tell."""
    low = name.lower()
    if "dali" in low and "loader" not in low:
        return "loader's kernels"
    if low.startswith("triton"):  # fused: named after all that is in it
        return next((k for k, words in KINDS[:2] if any(word in low for word in words)), "elementwise")
    return next((k for k, words in KINDS if any(word in low for word in words)), "")


@dataclass
class _Open:
    """An operator or range that has begun: its own time is what its parts leave."""

    name: str
    annotation: bool
    end: float
    own: float
    kind: str
    decided: bool
    """In a range that decides what all in it counts as."""


Sums = tuple[dict[str, float], dict[str, tuple[float, int]]]


def _of_operators(host: Sequence[dict[str, Any]], window: float) -> Sums:
    """Own time of the training thread's operators; what lies between operators is idle."""
    split: dict[str, float] = defaultdict(float)
    operators: dict[str, tuple[float, int]] = {}
    stack: list[_Open] = []

    def close(until: float) -> None:
        while stack and stack[-1].end <= until:
            done = stack.pop()
            split[done.kind] += done.own
            if not done.annotation:
                time, calls = operators.get(done.name, (0.0, 0))
                operators[done.name] = (time + done.own, calls + 1)

    for event in sorted(host, key=lambda e: (e["ts"], -e["dur"])):
        close(event["ts"])
        name, annotation = event["name"], event["cat"] == "user_annotation"
        above = stack[-1] if stack else _Open("", True, math.inf, 0.0, "", False)
        if above.decided:
            here, decided = above.kind, True
        elif annotation:
            here, decided = {"data": "data wait", "optimizer": "optimizer"}.get(name, ""), name in ("data", "optimizer")
        else:
            here, decided = kind(name) or above.kind or "other", False
        above.own -= event["dur"]
        stack.append(_Open(name, annotation, event["ts"] + event["dur"], event["dur"], here, decided))
    close(math.inf)
    split.pop("", None)
    split["idle"] = max(0.0, window - sum(split.values()))
    return split, operators


def _of_kernels(events: Sequence[dict[str, Any]], begin: float, end: float, spans: dict[str, list[Span]]) -> Sums:
    """Time of kernels and copies on the GPU; its empty time is a wait for data where the host waits for data too."""
    launched_by = {
        e["args"]["External id"]: e["name"]
        for e in events
        if e.get("cat") == "cpu_op" and "External id" in e.get("args", {})
    }
    launched_at = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    split: dict[str, float] = defaultdict(float)
    operators: dict[str, tuple[float, int]] = {}
    busy: list[Span] = []
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset") or not begin <= event["ts"] < end:
            continue
        arguments, name = event.get("args", {}), event["name"]
        instant = launched_at.get(arguments.get("correlation"), -1.0)
        own = kind(name)
        if any(a <= instant < b for a, b in spans["optimizer"]):
            here = "optimizer"
        elif name.startswith("triton") or own in ("loader's kernels", "copies"):
            here = own
        else:
            here = kind(launched_by.get(arguments.get("External id"), "")) or own or "other"
        split[here] += event["dur"]
        time, calls = operators.get(name, (0.0, 0))
        operators[name] = (time + event["dur"], calls + 1)
        if here != "loader's kernels":
            busy.append(_span(event))
    idle = _gaps(busy, begin, end)
    split["data wait"] = sum(_overlap(gap, span) for gap in idle for span in spans["data"])
    split["idle"] = _length(idle) - split["data wait"]
    return split, operators


def _span(event: dict[str, Any]) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def _gaps(busy: Iterable[Span], begin: float, end: float) -> list[Span]:
    """What of begin..end no span covers."""
    gaps = []
    reached = begin
    for start, stop in chain(sorted(busy), [(end, end)]):
        if start > reached:
            gaps.append((reached, min(start, end)))
        reached = max(reached, stop)
    return gaps


def _overlap(a: Span, b: Span) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


def _length(spans: Iterable[Span]) -> float:
    return sum(b - a for a, b in spans)
