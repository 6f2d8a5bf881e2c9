"""Where a step's time goes: sums over known events, and the profile of a real step as TensorBoard shows it."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from bench.core.record import Row
from bench.speed import profile
from tests.measured import TINY, tiny


def test_phases_are_those_of_the_real_step_and_change_nothing():
    names: list[str] = []
    weights = []
    for told in (False, True):
        learner = tiny().cold_learner()
        step = profile.in_phases(learner, names.append) if told else learner.train_step
        for batch in islice(tiny().synthetic(4), 2):
            step(*batch)
        weights.append(learner.model.state_dict())
    assert names == ["forward", "backward", "optimizer", ""] * 2
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


def event(key, cpu=0, own=0, gpu=0, own_gpu=0, count=2, kernel=False, mark=False):
    """One row of key_averages(), times in microseconds."""
    device = DeviceType.CUDA if kernel else DeviceType.CPU
    return SimpleNamespace(
        key=key, count=count, device_type=device, is_user_annotation=mark, cpu_time_total=cpu,
        self_cpu_time_total=own, device_time_total=gpu, self_device_time_total=own_gpu,
    )  # fmt: skip


def by_name(rows, part):
    """Milliseconds a step of the rows of a part."""
    return {row.name: row.value for row in rows if row.part == part}


def test_parts_and_operators_of_known_events_on_a_cpu():
    events = [
        event("ProfilerStep*", 10_000, 100, mark=True),
        event(profile.DATA, 1000, 900, mark=True),
        event("forward", 4000, mark=True),
        event("backward", 3000, mark=True),
        event("optimizer", 2000, 500, mark=True),
        event("aten::convolution", 1500, 10),
        event("aten::mkldnn_convolution", 1490, 1400),  # inside the one above
        event("_ConvolveBackward", 700, 100),
        event("autograd::engine::evaluate_function: ConvolutionBackward0", 800, 20),
        event("ConvolutionBackward0", 780, 30),
        event("aten::batch_norm", 400),
        event("NativeBatchNormBackward0", 300),
    ]
    rows = profile.rows_of(events, 2, cuda=False)
    assert by_name(rows, "host") == {"data": 0.5, "forward": 2, "backward": 1.5, "optimizer": 1}
    took = {"data": 0.5, "convolution": 1.49, "norm": 0.35, "optimizer": 1, "other": 1.66}
    assert by_name(rows, "part") == pytest.approx(dict.fromkeys(profile.PARTS, 0) | took)
    operators = by_name(rows, "operators")
    assert list(operators.items())[:2] == [("aten::mkldnn_convolution", 0.7), ("_ConvolveBackward", 0.05)]
    assert not operators.keys() & {"ProfilerStep*", profile.DATA, "optimizer"}
    assert next(row.note for row in rows if row.name == "optimizer") == "20.0% of a step"
    assert rows[-1].value is None


def test_parts_and_operators_of_known_events_on_a_gpu():
    events = [
        event("ProfilerStep*", 10_000, gpu=7000, mark=True),
        event("ProfilerStep*", own_gpu=9000, kernel=True, mark=True),
        event("optimizer", 900, gpu=1000, mark=True),
        event("aten::convolution", 500, gpu=3000),
        event("CudnnBatchNormBackward0", 300, gpu=500),
        event("sm90_xmma_gemm_bf16", own_gpu=3000, kernel=True),
        event("bn_bw_nhwc", own_gpu=500, kernel=True),
        event("multi_tensor_apply", own_gpu=1000, kernel=True),
        event("triton_poi_fused_add_relu_4", own_gpu=200, kernel=True),
        event("void dali::kernels::PasteKernel", own_gpu=300, kernel=True),
        event("void cudnn::ops::nchwToNhwcKernel<x>", own_gpu=0, kernel=True, count=4),
    ]
    rows = profile.rows_of(events, 2, cuda=True)
    took = {"convolution": 1.5, "norm": 0.25, "optimizer": 0.5}
    more = {"torch.compile's": 0.1, "other kernels": 0.15, "idle": 2.5}
    assert by_name(rows, "part") == pytest.approx(dict.fromkeys(profile.PARTS, 0) | took | more)
    assert next(iter(by_name(rows, "operators"))) == "sm90_xmma_gemm_bf16"
    assert (rows[-1].part, rows[-1].value) == ("layout", 2.0)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        profile.main([*TINY, "--steps", "2", "--out", str(folder)])
    return json.loads(out.getvalue().splitlines()[-1])


def test_the_profile_of_a_real_step_has_all_its_parts(profiled):
    rows = [Row(**row) for row in profiled["rows"]]
    host, parts = by_name(rows, "host"), by_name(rows, "part")
    assert list(host) == ["data", "forward", "backward", "optimizer"] and all(value > 0 for value in host.values())
    assert list(parts) == [*profile.PARTS, "other"] and all(value > 0 for value in parts.values())
    assert parts["convolution"] + parts["norm"] + parts["activation"] < host["forward"] + host["backward"]
    assert any("convolution" in name for name in by_name(rows, "operators"))
    assert Path(profiled["trace"]).exists() and "--logdir" in profiled["tensorboard"]


@pytest.mark.slow
def test_the_profiler_does_not_have_the_memory_grow_with_every_step(tmp_path):
    """Its small blocks lie between the large ones: on a heap that keeps these, ten steps more took 2.2 GB more."""

    def peak(steps):
        flags = f"--resolutions 32 --width 8 --threads 1 --data generated:1024/64 --device cpu --steps {steps}"
        command = [sys.executable, "-m", "bench", "profile", "cpu", *flags.split(), "--out", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss

    assert peak(12) - peak(2) < 500_000, "kilobytes"


def test_tensorboard_shows_the_profile(profiled):
    command = [*shlex.split(profiled["tensorboard"]), "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stderr is not None
        address = next(match for line in server.stderr if (match := re.search(r"http://\S+?:\d+/", line)))

        def get(view):
            url = f"{address.group()}data/plugin/pytorch_profiler/{view}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()

        deadline = time.monotonic() + 30
        while (runs := json.loads(get("runs"))) and (runs["loading"] or not runs["runs"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (run,) = runs["runs"]
        assert {"Overview", "Operator", "Trace", "Memory"} <= set(json.loads(get(f"views?run={run}")))
        query = f"?run={run}&worker=train&span=1"
        overview = json.loads(get(f"overview{query}&view=Overview"))
        columns = [column.get("name") for column in overview["steps"]["columns"]]
        waits = [row[columns.index("DataLoader")] for row in overview["steps"]["rows"]]
        assert len(waits) == 2 and all(wait > 0 for wait in waits)
        operators = json.loads(get(f"operation{query}&view=Operator&group_by=Operation"))
        assert any("convolution" in row[0] for row in operators["host_total_time"]["rows"])
        assert len(get(f"trace{query}")) > 10_000
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the plugin's own processes too
        server.wait()
