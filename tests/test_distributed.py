"""Several processes: the same batches, the same weights, one voice. Two gloo ranks; `gpu` tests are for CUDA."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train
from bench.speed import scaling
from engine import checkpoint, distributed, known, temperature
from engine.distributed import World
from engine.learner import LOOKAHEAD_EVERY, Evaluation, Learner, evaluate
from engine.machine import Machine
from engine.model import ResNet
from engine.optimizer import one_cycle
from pipeline.dali import evaluation_loader
from pipeline.synthetic import generated
from run import resume
from run.stopwatch import Stopwatch
from tests import ranks
from tests.commands import weights

CPU = torch.device("cpu")
SCRIPT = Path(ranks.__file__)
LIMIT = 600  # seconds; on a quiet machine each takes 20
STREAMS: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one | two)


def start_ranks(task, folder, size=2, **more):
    """A task of tests/ranks.py in so many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, task, str(folder)], **STREAMS,
            env={**os.environ, **common, **more, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]  # fmt: skip


def world_of_two(task, folder):
    for process in start_ranks(task, folder):
        out, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, out


# Learning


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks came to."""
    folder = tmp_path_factory.mktemp("two")
    world_of_two("learn", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def ghosts(count):
    """One process that computes the shares of `count` ranks one after the other, written out."""
    own = ranks.learner()
    own.model.train()
    parameters, buffers = list(own.model.parameters()), list(own.model.buffers())
    sums = torch.zeros(3, dtype=torch.float64)
    for shards in zip(*(ranks.shares(World(rank, count)) for rank in range(count)), strict=True):
        if own.step % ranks.STEPS == 0:
            sums.zero_()
        for rank, (images, labels) in enumerate(shards):
            before = [buffer.clone() for buffer in buffers]
            loss, correct = own.loss(images, labels)
            (loss * (len(labels) * count / ranks.BATCH)).backward()
            sums += torch.tensor([loss.item() * len(labels), correct.item(), len(labels)], dtype=torch.float64)
            if rank:  # the statistics are rank 0's
                for buffer, kept in zip(buffers, before, strict=True):
                    buffer.copy_(kept)
        for parameter in parameters:
            parameter.grad /= count
        for group, peak in zip(own.optimizer.param_groups, own._peaks, strict=True):
            group["lr"] = one_cycle(own.config, peak, own.step, own.total_steps)
        own.optimizer.step()
        own.optimizer.zero_grad()
        own.step += 1
        if own.step == own.total_steps or own.step % LOOKAHEAD_EVERY == 0:
            own.lookahead.update(own.step / own.total_steps)
    return own, sums


def test_two_ranks_learn_what_one_process_learns_from_the_same_shares(two):
    expected, sums = ghosts(2)
    state = expected.state_dict()
    for name in state["model"]:
        assert torch.equal(two[0]["learner"]["model"][name], state["model"][name]), name
    for part in ("optimizer", "lookahead", "step"):
        assert checkpoint.digest(two[0]["learner"][part]) == checkpoint.digest(state[part]), part
    for own in two:
        assert own["learner"]["metrics"][:3].tolist() == pytest.approx(sums.tolist(), abs=1e-12)
        assert own["learner"]["metrics"][5] == ranks.BATCH
    named = dict(ResNet("abcdefghij", width=8).named_parameters())
    assert all(torch.equal(two[0]["learner"]["model"][name], two[1]["learner"]["model"][name]) for name in named)
    moved = ranks.learner().model.state_dict()
    assert not any(torch.equal(moved[name], state["model"][name]) for name in named)


def test_the_model_that_counts_is_rank_0s_evaluated_by_both_and_fitted_to_the_images_of_all(two, monkeypatch):
    name = "layer1.0.bn1.running_mean"
    assert not torch.equal(two[0]["learner"]["model"][name], two[1]["learner"]["model"][name])
    assert same(two[0]["evaluated"], two[0]["learner"]["model"])
    assert same(two[1]["evaluated"], two[0]["learner"]["model"])
    model = ResNet("abcdefghij", width=8)
    model.load_state_dict(two[0]["evaluated"])
    model = model.to(memory_format=torch.channels_last).eval()
    alone = evaluate(model, ranks.batches(World()), Machine(CPU))
    monkeypatch.setattr(temperature, "FEWEST", 33)
    fitted = temperature.fit_temperature(model, ranks.batches(World()), Machine(CPU))
    assert two[0]["temperature"] == two[1]["temperature"] == pytest.approx(fitted, rel=1e-9)
    monkeypatch.setattr(known, "FEWEST", 33)
    ours = known.fit_known(model, ranks.batches(World()), ranks.batches(World()), 0.5, Machine(CPU))
    assert ours is not None and two[0]["known"]["distance"] == two[1]["known"]["distance"]
    assert torch.equal(two[0]["known"]["answers"], ours.answers) and two[0]["known"]["total"] == 33
    torch.testing.assert_close(two[0]["known"]["whitener"], ours.whitener, rtol=1e-3, atol=1e-3)
    assert two[0]["known"]["distance"] == pytest.approx(ours.distance, rel=1e-3)
    for own in two:
        assert (own["evaluation"]["correct"], own["evaluation"]["total"]) == (alone.correct, 33)
        assert own["evaluation"]["loss"] == pytest.approx(alone.loss, rel=1e-12)


def test_what_ranks_tell_each_other(two):
    for own in two:
        assert own["largest"] == 1.0
        assert own["from_first"] == {"rank": 0, "path": Path("x")}
        assert own["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


class Counting(World):
    """Ranks one after the other: the sum so far stands for the sum of all."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros((), dtype=torch.float64)

    def sum_(self, values):
        self.total = self.total + values
        return values.copy_(self.total)


@pytest.mark.parametrize(("count", "batch"), [(10_000, 1000), (3_333, 250), (3, 1000)])
def test_sharded_evaluation_counts_as_one_process_does(count, batch):
    torch.manual_seed(0)
    model = ResNet("abcdefghij", width=4, resolution=8).to(memory_format=torch.channels_last)
    split = generated(count)
    alone = evaluate(model, evaluation_loader(split, 8, CPU, 1, batch), Machine(CPU))
    assert alone.total == count
    for size in (1, 2, 3, 4):
        machine = Machine(CPU, world=Counting())
        for rank in range(size):
            found = evaluate(model, evaluation_loader(split, 8, CPU, 1, batch, rank, size), machine)
        assert (found.correct, found.total) == (alone.correct, alone.total)
        assert [found.loss, found.class_accuracy] == pytest.approx([alone.loss, alone.class_accuracy], rel=1e-12)


def test_a_share_too_small_and_sync_batch_norm_on_a_cpu_are_refused():
    with pytest.raises(ValueError, match="--batch-size is 33: 17 processes need 2 images each"):
        ranks.learner(World(0, 17))
    with pytest.raises(ValueError, match="--sync-batch-norm is for CUDA, and this run is on a CPU"):
        ranks.learner(config=replace(ranks.CONFIG, sync_batch_norm=True))


def test_one_process_has_no_wrapper_and_each_needs_a_gpu_of_its_own(monkeypatch):
    call = World().replicate(model := ResNet("abcdefghij", width=4))
    assert not isinstance(call, nn.Module) and call(lambda *given: given, 1, 2) == (model, 1, 2)
    assert not torch.distributed.is_initialized()
    monkeypatch.setattr(distributed, "pick_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert World().device("cuda").type == "cuda"
    with pytest.raises(ValueError, match=r"2 processes on a machine with 1 GPU: start one for each GPU"):
        World(0, 2, 0, 2).device("cuda")


@pytest.mark.gpu
def test_synchronised_batch_norm_learns_what_one_process_learns_from_whole_batches(tmp_path):
    """Two ranks on one GPU, where there is only one: NCCL refuses that, gloo does not."""
    world_of_two("sync", tmp_path)
    device = torch.device("cuda", 0)
    own = ranks.learner(device=device, dtype=torch.float64)
    own.model.train()
    for images, labels in ranks.shares(World(), device):
        own.train_step(images, labels)
    found = torch.load(tmp_path / "weights.pt", map_location=device)
    for name, expected in own.model.state_dict().items():
        if expected.is_floating_point():  # torch's synchronised batch norm counts its batches, ours does not
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9, msg=name)


# Under torchrun: see `train` in tests/ranks.py


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Folder, exit code, output and end of one torchrun with one restart."""
    folder = tmp_path_factory.mktemp("launched")
    command = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1".split()]
    command += [str(SCRIPT), "train", str(folder)]
    done = subprocess.run(command, cwd=folder, timeout=LIMIT, **STREAMS)
    return folder, done.returncode, done.stdout, time.time()


def rows(folder):
    times = {"train_seconds", "wait_seconds", "eval_seconds", "it_per_s", "images_per_s"}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def test_a_killed_worker_is_restarted_and_the_run_ends_with_the_same_weights(launched):
    folder, _, out, _ = launched
    assert f"going on from {folder}/killed/resume-0000000" in out, out
    assert same(weights(folder / "whole.pt"), weights(folder / "killed.pt"))
    assert rows(folder / "whole") == rows(folder / "killed")
    assert [row["reported_total"] for row in rows(folder / "whole")] == [1100, 1100]
    # Batches of 1,000 and 100, one a rank.
    with np.load(folder / "whole" / "predictions.npz") as kept:
        right = kept["predicted"] == kept["labels"]
        assert (len(right), right.sum()) == (1100, rows(folder / "whole")[-1]["reported_correct"])
        assert (kept["probability"] > 0).all()


def test_only_rank_0_speaks_and_a_rank_that_raises_ends_all_and_says_why_once(launched):
    folder, code, out, end = launched
    assert out.count("epoch  px") == 3, out  # whole, killed until it was, killed from there on
    assert out.count("processes 2") == 4  # and the one that fails
    assert out.count("Traceback") == 1  # torchrun's own
    assert code != 0 and end - json.loads((folder / "failed_at").read_text()) < 30
    assert out.count("there is a hole in the bucket") == 1 == out.count("train.py, rank 1: there is a hole in the")
    assert not (folder / "failed.pt").exists()


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """train.main in the place of one rank, without its others: the batches that it would train on."""
    monkeypatch.chdir(tmp_path)
    result = Evaluation(1.0, 1, 1, 1.0, torch.zeros(2, 1))
    monkeypatch.setattr(Learner, "evaluate", lambda *args, **named: result)
    for name in ("replicate", "scale_loss", "sum_", "largest", "share_buffers", "from_first", "require_agreement"):
        ours = getattr(World, name)
        monkeypatch.setattr(World, name, lambda own, *rest, ours=ours: ours(World(), *rest))
    seen: list = []

    def step(own, *batch):
        seen.append([tensor.clone() for tensor in batch])
        own.step += 1

    monkeypatch.setattr(Learner, "train_step", step)

    def run(*arguments, world):
        seen.clear()
        train.main([*arguments, "--run-dir", f"rank{world.rank}of{world.size}"], world)
        return list(seen)

    return run


def test_saved_by_two_ranks_resumed_by_one_and_by_three_sees_the_same_batches(launched, recorded, capsys):
    state = str(launched[0] / "of_two.pt")
    whole = recorded(*ranks.TRAINED, world=World())
    assert len(whole) == 8
    Path("rank0of1").rename("whole")
    one = recorded("--resume", state, world=World())
    assert "not the environment it began in (processes 2 -> none" in capsys.readouterr().out
    three = [recorded("--resume", state, world=World(r, 3, r, 3)) for r in range(3)]
    assert len(one) == len(three[0]) == 3
    for step, expected in enumerate(whole[5:]):
        assert all(torch.equal(a, b) for a, b in zip(one[step], expected, strict=True))
        for rank in range(3):
            assert all(torch.equal(a, b[rank::3]) for a, b in zip(three[rank][step], expected, strict=True))


# Restarts


def test_a_restarted_run_goes_on_only_from_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resume, "_load", resume.State)
    for name in ("runs/old", "mine"):
        Path(name).mkdir(parents=True)
        Path(name, "resume-00000001.pt").touch()
    assert resume.find("", "mine").path is None
    for wanted in ("", "runs/old", "auto"):
        assert resume.find(wanted, "mine", restarted=True).path == Path("mine/resume-00000001.pt")
    assert resume.find("runs/old", "new", restarted=True).path == Path("runs/old/resume-00000001.pt")
    for run_dir in ("", "new"):
        state = resume.find("", run_dir, restarted=True)
        assert state.path is None and "restarted, and no state" in state.notes[0]


def test_sigterm_is_left_as_it_was_with_several_ranks(tmp_path):
    own = ranks.learner()
    own.machine = Machine(CPU, world=World(0, 2))
    kept = resume.Keeper(tmp_path, (), own, "", Stopwatch({}), resume.State())
    before = signal.getsignal(signal.SIGTERM)
    with kept:
        assert signal.getsignal(signal.SIGTERM) == before


# Ranks that are not alike

EACH = "--max-lr 0.3,--seed 1,--epochs 3,--data generated:100/50,--precision bf16,--no-whiten,--resolutions 8"
UNLIKE = [(flags, 2) for flags in [*EACH.split(","), "--validate", "torch", "dali"]]
UNLIKE += [("--max-lr 0.3", 3), ("--data generated:2048/50", 3), ("python", 3)]


@pytest.mark.parametrize(
    ("flags", "size"),
    [pytest.param(*one, marks=[] if one in (UNLIKE[0], UNLIKE[-1]) else pytest.mark.slow) for one in UNLIKE],
)
def test_ranks_that_differ_are_refused_in_one_line_before_anything_is_written(tmp_path, flags, size):
    start = time.monotonic()
    processes = start_ranks("unlike", tmp_path, size, FLAGS=flags)
    out = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert time.monotonic() - start < 30
    codes = [process.returncode for process in processes]
    assert codes[0] == 2 and 0 not in codes
    lines = [line for line in out.splitlines() if line.startswith("train.py")]
    named = flags.split("=")[0].split()[0].replace("--no-", "--").replace("--data", "images")
    assert len(lines) == 1 and f"ranks 0 and {size - 1} differ in " in lines[0] and named in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"RANK": "x"}, "RANK is x: torchrun sets it to a number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is -1"),
        ({"LOCAL_RANK": "1e3"}, "LOCAL_RANK is 1e3"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2, WORLD_SIZE 2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, ""),
    ],
)
def test_what_torchrun_says_is_checked(monkeypatch, capsys, values, said):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        distributed.execute(lambda arguments, world: print(vars(world)), "train.py")
    out, err = capsys.readouterr()
    assert (end.value.code, err.count("\n")) == ((2, 1) if said else (0, 0))
    assert said in err and ("'size': 1" in out) != bool(said)


# How it scales


def test_scaling_tells_rates_and_efficiency(monkeypatch, tmp_path, capsys):
    asked = []

    def answer(words, limit):
        asked.append(words[1:])
        count = len(asked)
        return {"rates": [90.0 * count, 100.0 * count, 120.0 * count], "wait": 0.25}

    monkeypatch.setattr(scaling, "report_of", answer)
    flags = ["--data", "generated", "--batch-size", "64", "--device", "cpu", "--out", str(tmp_path)]
    scaling.main(["--processes", "4", "1", *flags])
    words = ["bench.speed.scaling", "--processes", "4", "1", *flags]
    assert asked == [words, [*"torch.distributed.run --standalone --nproc-per-node=4 -m".split(), *words]]
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["rows"]}
    assert [rows[f"processes: {n}"]["value"] for n in (1, 4)] == [100.0, 200.0]
    assert [rows[f"efficiency, processes: {n}"]["value"] for n in (1, 4)] == [100.0, 50.0]
    assert rows["processes: 4"]["note"] == "16 images each; the slowest waits for data 25.0% of the time"
    assert all(Path(file).stat().st_size for file in report["files"])
    assert scaling.doubling(1) == [1] and scaling.doubling(6) == [1, 2, 4, 6] and scaling.doubling(8) == [1, 2, 4, 8]


def test_what_one_process_measures(capsys):
    flags = "--data generated --quick --width 8 --resolutions 8 --batch-size 16 --device cpu".split()
    scaling.measure_rank([*flags, "--threads", "1", "--precision", "fp32"], World())
    report = json.loads(capsys.readouterr().out)
    assert len(report["rates"]) == 3 and min(report["rates"]) > 0
    assert 0 < report["wait"] < 1


@pytest.mark.slow
def test_scaling_of_one_and_two_real_processes(tmp_path, capsys):
    flags = [*"--data generated --quick --width 8 --resolutions 16 --device cpu --out".split(), str(tmp_path)]
    scaling.main(["--processes", "1", "2", *flags])
    values = [row["value"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]]
    assert len(values) == 4 and min(values) > 0
