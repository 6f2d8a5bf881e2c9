"""The sums over known traces, and the profile of a real step as TensorBoard shows it."""

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
from pathlib import Path

import pytest
import torch

from bench.trace import profile, trace
from bench.trace.phases import Phases
from engine.config import Config
from engine.learner import Learner
from engine.machine import Machine
from engine.model import ResNet
from pipeline.synthetic import constant_batch
from tests.measured import CPU, TINY


def test_phases_are_those_of_the_real_step_and_change_nothing():
    def trained(wrapped):
        torch.manual_seed(0)
        model = ResNet("abcdefghij", width=8, resolution=8).to(memory_format=torch.channels_last)
        learner = Learner(model, Config(width=8, resolutions=(8,)), 10, Machine(CPU))
        entered: list[str] = []
        step = Phases(learner, entered.append).train_step if wrapped else learner.train_step
        for images, labels in [constant_batch(4, 8, CPU, 10)] * 2:
            step(images, labels)
        return entered, model.state_dict()

    entered, weights = trained(True)
    assert entered == ["forward", "backward", "optimizer", ""] * 2
    assert all(torch.equal(weights[name], value) for name, value in trained(False)[1].items())


def event(cat, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def test_the_split_of_a_known_cpu_trace():
    events = [
        event("user_annotation", "ProfilerStep#2", 1000, 1000),
        event("user_annotation", "data", 1000, 100),
        event("cpu_op", "aten::copy_", 1010, 50),  # the loader's own: part of the wait
        event("user_annotation", "forward", 1100, 400),
        event("cpu_op", "aten::convolution", 1110, 200),
        event("cpu_op", "aten::empty", 1120, 20),  # of the convolution
        event("cpu_op", "aten::copy_", 1150, 30),
        event("cpu_op", "aten::batch_norm", 1320, 100),
        event("cpu_op", "aten::relu_", 1430, 40),
        event("user_annotation", "optimizer", 1600, 200),
        event("cpu_op", "aten::_fused_sgd_", 1610, 150),
        event("cpu_op", "aten::convolution", 1200, 500, tid=2),  # another thread's
        event("cpu_op", "aten::convolution", 3000, 500),  # after the step
    ]
    found = trace.analyse({"traceEvents": events}, cuda=False)
    split = {name: round(seconds * 1e6) for name, seconds in found.split.items()}
    assert split == {
        "convolution": 170,
        "norm": 100,
        "elementwise": 40,
        "optimizer": 200,
        "copies": 30,
        "data wait": 100,
        "idle": 360,
    }
    assert sum(split.values()) == 1000 == round(found.seconds * 1e6)
    assert {name: round(s * 1e6) for name, s in found.ranges.items()} == {
        "data": 100, "forward": 400, "backward": 0, "optimizer": 200,
    }  # fmt: skip
    assert found.operators[0][0] == "aten::convolution" and found.operators[0][2] == 1
    assert found.operators[0][1] == pytest.approx(150e-6)


def test_the_split_of_a_known_cuda_trace():
    events = [
        event("user_annotation", "ProfilerStep#2", 0, 1000),
        event("user_annotation", "data", 0, 100),
        event("user_annotation", "optimizer", 300, 50),
        event("cpu_op", "aten::cudnn_convolution", 110, 10, **{"External id": 7}),
        event("cpu_op", "ConvolutionBackward0", 200, 10, tid=2, **{"External id": 8}),
        event("cuda_runtime", "cudaLaunchKernel", 112, 2, correlation=70),
        event("cuda_runtime", "cudaLaunchKernel", 202, 2, tid=2, correlation=80),
        event("cuda_runtime", "cuLaunchKernel", 250, 2, correlation=90),
        event("cuda_runtime", "cudaLaunchKernel", 310, 2, correlation=95),
        event("cuda_runtime", "cudaMemcpyAsync", 360, 2, correlation=96),
        event("kernel", "sm90_xmma_gemm_bf16", 150, 100, tid=7, **{"External id": 7, "correlation": 70}),
        event("kernel", "cutlass_tensorop", 250, 200, tid=7, **{"External id": 8, "correlation": 80}),
        event("kernel", "triton_red_fused__native_batch_norm_legit_3", 450, 50, tid=7, correlation=90),
        event("kernel", "triton_poi_fused_add_relu_4", 500, 50, tid=7, correlation=91),
        event("kernel", "void at::native::elementwise_kernel<x>", 550, 100, tid=7, correlation=95),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 650, 50, tid=7, correlation=96),
        event("kernel", "void dali::kernels::PasteKernel", 0, 80, tid=9, correlation=5),
        event("kernel", "void cudnn::ops::nchwToNhwcKernel<x>", 350, 0, tid=7, correlation=97),
        event("kernel", "void cudnn::ops::nchwToNhwcKernel<x>", 360, 0, tid=7, correlation=98),
    ]
    found = trace.analyse({"traceEvents": events}, cuda=True)
    split = {name: round(seconds * 1e6) for name, seconds in found.split.items()}
    assert split == {
        "convolution": 300,
        "norm": 50,
        "elementwise": 50,
        "optimizer": 100,
        "copies": 50,
        "loader's kernels": 80,
        "data wait": 100,
        "idle": 350,
    }
    assert found.operators[0][0] == "cutlass_tensorop"
    *_, layouts = profile.rows(found, 2, cuda=True)
    assert (layouts.part, layouts.value) == ("layout", 1.0)
    assert profile.rows(found, 2, cuda=False)[-1].value is None


def test_a_trace_without_steps_is_refused():
    with pytest.raises(ValueError, match="no training step"):
        trace.analyse({"traceEvents": []}, cuda=False)


def test_gaps_of_overlapping_spans():
    assert trace._gaps([(5, 6), (1, 3), (2, 4)], 0, 10) == [(0, 1), (4, 5), (6, 10)]
    assert trace._gaps([(-5, 20)], 0, 10) == []


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        profile.main([*TINY, "--steps", "2", "--out", str(folder)])
    return json.loads(out.getvalue().splitlines()[-1])


def test_the_profile_splits_the_whole_time(profiled):
    split = {row["name"]: row["value"] for row in profiled["rows"] if row["part"] == "split"}
    assert sum(split.values()) == pytest.approx(100, abs=1)
    assert all(split[name] > 0 for name in ("convolution", "norm", "elementwise", "optimizer", "copies", "data wait"))
    host = {row["name"]: row["value"] for row in profiled["rows"] if row["part"] == "host"}
    assert list(host) == ["data", "forward", "backward", "optimizer"] and all(value > 0 for value in host.values())
    assert any("convolution" in row["name"] for row in profiled["rows"] if row["part"] == "operators")
    assert Path(profiled["trace"]).exists() and "--logdir" in profiled["tensorboard"]


@pytest.mark.slow
def test_the_profiler_does_not_have_the_memory_grow_with_every_step(tmp_path):
    """Its small blocks lie between the large ones: on a heap that keeps these, ten steps more took 2.2 GB more."""

    def peak(steps):
        flags = f"--resolutions 32 --width 8 --threads 1 --data generated:1024/64 --device cpu --steps {steps}"
        command = [sys.executable, "-m", "bench", "profile", "cpu", *flags.split(), "--out", str(tmp_path)]
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(command, stdout=nowhere)
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
