"""Stopping and going on: states that check themselves, stop signals, one writer, and what is refused."""

import errno
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import train
from engine import checkpoint
from engine.config import PRESETS, Config
from engine.learner import Learner, NonFiniteLoss
from engine.machine import Machine
from engine.model import ResNet
from ground.entry import describe
from ground.interrupt import SIGNALS, Stopped, StopSignals
from ground.memory import memory_advice
from ground.mistake import Mistake
from pipeline.dali import DaliLoader
from pipeline.plan import Plan
from pipeline.synthetic import generated
from run import resume
from run import schema as state_schema
from run.folder import RunFolder
from run.stopwatch import Stopwatch
from tests.commands import call, refused, weights
from tests.forged import archive, members, rewritten
from tests.learning import train_epoch

CPU = torch.device("cpu")
HOW = ["--device", "cpu", "--threads", "1"]
STEPS = 4
QUICK = "smoke --epochs 2 --resolutions 16 --batch-size 32 --precision fp32".split()
QUICK += ["--data", f"generated:{32 * STEPS}/64", *HOW]
RUN = [*QUICK, "--run-dir", "run"]
CONFIG = replace(PRESETS["smoke"], epochs=2, resolutions=(16,), batch_size=8, run_dir="run", muon_lr=0.1)
HERE = Machine(CPU).card() | Machine(CPU).choices()


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("run.run.model_summary", lambda *args: "")
    monkeypatch.setattr(resume, "SHARE", 1e9)
    threads = torch.get_num_threads()
    # As in a terminal: a shell's background job, or nohup, starts with some of them ignored, and we keep that.
    usual = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    torch.set_num_threads(threads)
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == usual
    for signum, handler in before.items():
        signal.signal(signum, handler)


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one | two)


def log(folder="run"):
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]


def rows(folder="run"):
    """The log without its times."""
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_s" not in k} for row in log(folder)]


def learner(config=CONFIG):
    torch.manual_seed(0)
    return Learner(ResNet("abcdefghij", config.depth, config.width, 16), config, STEPS, Machine(CPU))


@pytest.fixture
def at_step(monkeypatch):
    """Call it with {steps done: what is then called, once}."""
    real = Learner.train_step

    def install(actions):
        def train_step(own, *batch):
            real(own, *batch)
            actions.pop(own.step, lambda: None)()

        monkeypatch.setattr(Learner, "train_step", train_step)

    return install


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def step(own, count=1):
    images = torch.from_numpy(generated(8).images[:, ::2, ::2].copy()).permute(0, 3, 1, 2)
    for _ in range(count):
        own.train_step(images, torch.arange(8))


def row(epoch):
    """A row that may be the log's."""
    values = {"epoch": epoch, "epochs": 2, "step": STEPS * epoch, "steps": 2 * STEPS, "split": "test"}
    return dict.fromkeys(state_schema.COLUMNS, 1) | values


def keeper(own, folder="run", state=None, rows=()):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return resume.Keeper(Path(folder), rows, own, "data", Stopwatch({}), state or resume.State())


# States


def test_rows_from_before_their_columns_were_renamed_are_read():
    own = learner()
    step(own, STEPS)
    rows = [row(1)]
    keeper(own, rows=rows).save()
    (path,) = resume.states(Path("run"))
    old = {key.replace("reported_", "test_"): value for key, value in rows[0].items()}
    rewritten(path, lambda content: content.update(rows=[old]))
    assert "test_loss" in torch.load(path, weights_only=True)["rows"][0]
    state = resume.find("run", "")
    assert state.rows == rows
    resume.restore(learner(), state, CONFIG, "data")
    new = {key: old[key] for key in old if key != "loss"} | {"test_loss_of_training": 1.0}
    for wrong in (old | {"test_loss": -1.0}, old | {"reported_loss": 1.0}, old | {"reported_lr": 1.0}, new):
        rewritten(path, lambda content, wrong=wrong: content.update(rows=[wrong]))
        with pytest.raises(ValueError, match=path.name):
            resume.find("run", "")


def test_the_last_two_states_are_kept_and_hold_everything():
    kept = keeper(own := learner())
    for _ in range(3):
        step(own)
        kept.save()
    assert [path.name for path in resume.states(Path("run"))] == ["resume-00000003.pt", "resume-00000002.pt"]
    state = resume.find("run", "")
    for found in (state, resume.find("run/resume-00000003.pt", ""), resume.find("auto", "run")):
        assert found.path == Path("run/resume-00000003.pt")
    assert (state.config, state.environment, state.data) == (CONFIG, HERE, "data")
    assert state.seconds.keys() == {"save"}
    # The settings of the optimizer are the config's, not the state's.
    changed = {"weight_decay": 0.5, "maximize": True}
    rewritten(state.path, lambda content: content["learner"]["optimizer"]["param_groups"][0].update(changed))
    for same in (state, resume.find("run", "")):
        other = learner()
        resume.restore(other, same, state.config, "data")
        if same is state:
            step(own)
        step(other)
        assert checkpoint.digest(own.state_dict()) == checkpoint.digest(other.state_dict())


DEAD = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "zeros": lambda data: bytes(len(data)),
    "foreign": lambda data: b"PKhello",
}


@pytest.mark.parametrize("damage", DEAD)
def test_a_damaged_state_is_passed_over_and_said(damage):
    kept = keeper(own := learner())
    for own.step in (1, 2):
        kept.save()
    newest, older = resume.states(Path("run"))
    newest.write_bytes(DEAD[damage](newest.read_bytes()))
    for wanted, folder in (("run", ""), ("auto", "run")):
        state = resume.find(wanted, folder)
        assert state.path == older
        assert str(newest) in state.notes[0]
        assert state.notes[0].endswith("using the state before it")
    with pytest.raises(checkpoint.DamagedError, match=newest.name):
        resume.find(str(newest), "")
    resume.claim(Path("run"), state)
    assert resume.states(Path("run")) == [older], "the damaged one would pass for the newest"
    for path in (older, newest):
        path.write_bytes(b"")
    for wanted, folder in (("run", ""), ("auto", "run")):
        with pytest.raises(ValueError, match=rf"no state to go on from: .*{newest.name}.*{older.name}"):
            resume.find(wanted, folder)
    resume.claim(Path("run"), resume.State())
    assert resume.states(Path("run")) == [], "the damaged are dead to a fresh run too"


def test_auto_takes_the_run_written_last_or_none():
    assert resume.find("auto", "").notes == resume.find("auto", "runs/a").notes == ["nothing to resume: a fresh run"]
    for age, name in ((100, "b"), (300, "a"), (200, "c")):
        kept = keeper(learner(), f"runs/{name}")
        kept.save()
        os.utime(kept.saved, (1e9 - age, 1e9 - age))
    assert resume.find("auto", "").config.run_dir == "runs/b"
    assert resume.find("auto", "runs/a").config.run_dir == "runs/a"
    with pytest.raises(FileNotFoundError, match="no resume state in this folder"):
        resume.find("runs", "")
    with pytest.raises(FileNotFoundError):
        resume.find("runs/z", "")


def test_only_the_programs_own_states_count_by_their_numbers():
    kept = keeper(own := learner())
    for own.step in (99_999_998, 99_999_999, 100_000_000):
        kept.save()
    older, newest = Path("run/resume-99999999.pt"), Path("run/resume-100000000.pt")
    others = {"resume-backup.pt", "resume-00000003 (copy).pt", "resume-٣.pt", "resume-.pt", "resume-4.pt.bak"}
    for name in others:
        Path("run", name).write_bytes(older.read_bytes())
    Path("run/resume-999999999.pt").mkdir()
    os.mkfifo("run/resume-999999998.pt")
    Path("elsewhere").mkdir()
    linked = older.rename("elsewhere/resume-5.pt")
    older.symlink_to("../elsewhere/resume-5.pt")
    theirs = linked.read_bytes()
    assert resume.states(Path("run")) == [newest]
    state = resume.find("run", "")
    assert state.path == newest
    resume.claim(Path("run"), state)
    own.step = 99_999_999
    kept.save()
    assert not older.is_symlink() and resume.states(Path("run")) == [newest, older]
    assert linked.read_bytes() == theirs != older.read_bytes()
    own.step = 100_000_001
    kept.save()
    left = {"resume-999999999.pt", "resume-999999998.pt", "resume-100000000.pt", "resume-100000001.pt"}
    assert {path.name for path in Path("run").iterdir()} == others | left
    assert resume.find("run/resume-backup.pt", "").path == Path("run/resume-backup.pt"), "where it is asked for"


def test_a_resumed_backup_in_the_folder_removes_what_is_beyond_its_step():
    kept = keeper(own := learner())
    for own.step in (1, 2):
        kept.save()
    for name in ("a.pt", "resume-00000009.pt"):
        resume.states(Path("run"))[-1].rename(f"run/{name}")
        resume.claim(Path("run"), resume.find(f"run/{name}", ""))
        assert [path.name for path in Path("run").iterdir()] == [name]
        Path("run", name).rename("run/resume-00000001.pt")


@pytest.mark.parametrize(("gone", "kept"), ["ab", "ba"])
def test_auto_bears_with_a_run_that_deletes_a_state_meanwhile(monkeypatch, gone, kept):
    for name in "ab":
        keeper(learner(), f"runs/{name}").save()
    found = resume.states

    def deleted(folder):
        files = found(folder)
        if folder.name == gone:
            Path(f"runs/{gone}/resume-00000000.pt").unlink(missing_ok=True)
        return files

    monkeypatch.setattr(resume, "states", deleted)
    assert resume.find("auto", "").path == Path(f"runs/{kept}/resume-00000000.pt")


def test_a_state_that_does_not_fit_is_refused():
    step(own := learner())
    keeper(own).save()
    state = resume.find("run", "")
    momentum = {key: {"momentum_buffer": torch.zeros(3)} for key in state.learner["optimizer"]["state"]}
    optimizer = {**state.learner["optimizer"], "state": momentum}
    wrong: list[dict[str, object]] = [{"step": 1000}, {"step": "1"}, {"model": {}}, {"model": 3}]
    wrong += [{"optimizer": {}}, {"optimizer": optimizer}, {"lookahead": []}, {"metrics": torch.zeros(3)}]
    states = [replace(state, learner={**state.learner, **parts}) for parts in wrong]
    states += [replace(state, learner={}), replace(state, rows=[row(1)] * 3)]
    for bad in states:
        with pytest.raises(ValueError, match=r"resume-00000001\.pt"):
            resume.restore(learner(), bad, CONFIG, "data")
    with pytest.raises(ValueError, match="other data"):
        resume.restore(learner(), state, CONFIG, "other")
    with pytest.raises(ValueError, match=r"--seed 0 -> 1; --max-lr|--max-lr 0\.1 -> 0\.2; .*--seed 0 -> 1"):
        resume.restore(learner(), state, replace(CONFIG, seed=1, max_lr=0.2), "data")
    free = replace(CONFIG, out="x.pt", run_dir="y", device="cpu", threads=3, checkpoint_every=1.0)
    resume.restore(learner(), state, free, "data")


def test_the_longest_run_that_can_be_is_read_back():
    config = replace(CONFIG, epochs=10_000, depth=34, width=1)
    own, other = learner(config), learner(config)
    step(own)
    own.step = 10_000 * STEPS
    numbers = {name: 1 / 3 for name, kind in state_schema.COLUMNS.items() if kind is float}
    rows = [row(epoch) | numbers | {"epochs": 10_000, "steps": 10_000 * STEPS} for epoch in range(1, 10_001)]
    keeper(own, rows=rows).save()
    state = resume.find("run", "")
    assert state.rows == rows
    resume.restore(other, state, config, "data")
    for part in ("model", "lookahead", "metrics"):
        assert checkpoint.digest(own.state_dict()[part]) == checkpoint.digest(other.state_dict()[part])


def test_a_state_says_nothing_of_where_is_written_and_by_what(capsys, at_step):
    """Its paths, its device and its threads are those of whoever made it."""
    at_step({6: terminate})
    assert call(capsys, *RUN)[0] == 143
    Path("victim").write_text("mine")
    theirs = {"out": "victim", "run_dir": "elsewhere", "resume": "other", "device": "cuda", "threads": 1000}
    rewritten(resume.states(Path("run"))[0], lambda content: content["config"].update(theirs))
    code, out, _ = call(capsys, "--resume", "run")
    assert code == 0
    assert "these are the command line's, not the state's: --device cuda -> auto, --threads 1000 -> 0, " in out
    assert "--out victim -> model.pt\n" in out
    assert Path("victim").read_text() == "mine"
    assert Path("model.pt").exists() and len(rows("run")) == 2
    assert {path.name for path in Path().iterdir()} == {"victim", "run", "model.pt"}


def test_a_state_is_never_written_from_a_spoilt_model():
    kept = keeper(own := learner())
    step(own)
    kept.save()
    next(own.model.parameters()).data[0] = float("nan")
    step(own)
    with pytest.raises(NonFiniteLoss):
        kept.save()
    assert resume.states(Path("run")) == [Path(kept.saved)] == [Path("run/resume-00000001.pt")]


def test_a_save_that_fails_names_the_state_before_it():
    kept = keeper(own := learner())
    kept.save()
    before = Path(kept.saved).read_bytes()
    step(own)
    os.rename("run", "away")
    with pytest.raises(FileNotFoundError) as caught:
        kept.save()
    assert "last good resume state: run/resume-00000000.pt" in describe(caught.value)
    os.rename("away", "run")
    assert Path(kept.saved).read_bytes() == before


def test_saving_takes_its_share_of_the_time_and_no_more(monkeypatch):
    now, cost = [0.0], 0.5
    monkeypatch.setattr(resume, "perf_counter", lambda: now[0])
    monkeypatch.setattr(resume, "SHARE", 0.01)
    saves: list[float] = []

    def write(*args):
        now[0] += cost
        saves.append(now[0])

    monkeypatch.setattr(checkpoint, "write", write)

    def train_for(seconds, every):
        saves.clear()
        now[0] = 0.0
        kept = keeper(learner(replace(CONFIG, checkpoint_every=every)))
        for _ in range(10 * seconds):
            now[0] += 0.1
            kept.after_step()
        return len(saves)

    assert train_for(1000, 60.0) == 16
    assert cost * train_for(1000, 10.0) <= 0.01 * 1000 + cost
    assert train_for(10, 0.0) == 100, "0 is every step, whatever it costs"
    cost = 2.0
    assert train_for(1000, 60.0) == 5, "after 60 s, then every 200"
    saves.clear()
    kept = keeper(learner())
    for _ in range(100):
        now[0] += 5
        kept.end_epoch()
    assert cost * len(saves) <= 0.01 * 500 + cost


def test_a_fresh_run_does_not_overwrite_one_that_can_go_on():
    kept = keeper(learner())
    kept.save()
    leftover = Path("run/.resume-00000007.pt.abc.tmp")
    leftover.write_bytes(b"half")
    Path("run/log.jsonl").write_text("rows")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    for _ in range(2):
        with pytest.raises(ValueError, match="run holds a run that is not finished: go on with --resume run"):
            RunFolder("run")
    Path("run/run.lock").unlink()
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    Path(kept.saved).write_bytes(b"damaged")
    resume.claim(Path("run"), resume.State())
    assert resume.states(Path("run")) == []
    assert not leftover.exists()
    step(own := learner(), 2 * STEPS)
    own.step -= 1
    kept = keeper(own, rows=(rows := [row(1)]))
    kept.save()
    with pytest.raises(ValueError, match="not finished"):
        resume.claim(Path("run"), resume.State())
    own.step += 1
    rows.append(row(2))
    kept.end_epoch()
    assert len(resume.states(Path("run"))) == 2, "the last epoch's is saved, though not due"
    resume.claim(Path("run"), resume.State())
    assert resume.states(Path("run")) == [], "a finished run may be followed by another"


NOT_DEAD = {
    "another version": lambda path: rewritten(path, lambda content: content.update(version=3)),
    "one more column": lambda path: rewritten(path, lambda content: content["rows"][0].update(more=1.0)),
    "one more setting": lambda path: rewritten(path, lambda content: content["config"].update(more=1)),
    "another member": lambda path: archive(path, {**members(path), "a/more": b""}.items()),
    "a passing read error": lambda path: None,
}


@pytest.mark.parametrize("name", NOT_DEAD)
def test_a_run_that_cannot_be_read_is_not_taken_for_dead(monkeypatch, name):
    kept = keeper(own := learner(), rows=[row(1)])
    for own.step in (STEPS, STEPS + 1):
        kept.save()
    newest, older = resume.states(Path("run"))
    NOT_DEAD[name](newest)
    before, real = newest.read_bytes(), checkpoint.read

    def failing(path, kind):
        if path == newest and name == "a passing read error":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, kind)

    monkeypatch.setattr(checkpoint, "read", failing)
    with pytest.raises(Mistake, match=r"run holds a run that may be whole but cannot be read \(run/resume-00000005"):
        resume.claim(Path("run"), resume.State())
    assert resume.states(Path("run")) == [newest, older] and newest.read_bytes() == before
    # A run that goes on from the one before keeps it too, out of the way.
    state = resume.find("run", "")
    assert state.path == older
    resume.claim(Path("run"), state)
    assert resume.states(Path("run")) == [older] and Path(f"{newest}.unread").read_bytes() == before


def test_a_change_of_environment_is_one_line():
    keeper(learner()).save()
    state = replace(resume.find("run", ""), environment=HERE | {"threads": "2", "gpu": "none of these"})
    changed, going_on = keeper(learner(), state=state).notes
    assert changed == "not the environment it began in (gpu none of these -> none, threads 2 -> 1): weights may differ"
    assert going_on == "going on from run/resume-00000000.pt: epoch 1, step 0 of 8"
    assert keeper(learner(), state=replace(state, environment=HERE)).notes == [going_on]


# Signals


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def undisturbed(capsys, whole):
    """Weights and log of a run that nothing stopped."""
    if not (whole / "model.pt").exists():
        assert call(capsys, *QUICK, "--run-dir", str(whole), "--out", str(whole / "model.pt"))[0] == 0
    return {"weights": weights(whole / "model.pt"), "rows": rows(whole)}


@pytest.mark.parametrize(
    ("name", "code", "at", "done"),
    [
        ("SIGINT", 130, "step", 1),
        ("SIGTERM", 143, "step", 1),
        ("SIGHUP", 129, "step", 2),
        ("SIGTERM", 143, "step", 4),
        ("SIGINT", 130, "evaluation", 4),
        ("SIGTERM", 143, "last evaluation", 8),
    ],
)
def test_a_signal_stops_after_the_step_and_nothing_is_lost(
    capsys, monkeypatch, at_step, undisturbed, name, code, at, done
):
    real, moments = Learner.evaluate, iter(["evaluation", "", "last evaluation"])
    computed = []

    def reached(moment):
        if moment == at:
            os.kill(os.getpid(), getattr(signal, name))

    def evaluated(*arguments):
        reached(next(moments, ""))
        return real(*arguments)

    def after(step):
        computed.append(step)
        reached("step" if step == done else "")

    at_step({step: partial(after, step) for step in range(1, 9)})
    monkeypatch.setattr(Learner, "evaluate", evaluated)
    command = [*RUN, "--resume", "auto"]
    ended, _, err = call(capsys, *command)
    assert ended == code
    line = err.strip().splitlines()[-1]
    assert line.startswith("train.py: stopped and saved at epoch ")
    assert line.endswith(f"step {done} of 8; go on with: python train.py --resume run --device cpu --threads 1")
    assert resume.find("run", "").learner["step"] == done
    assert not Path("model.pt").exists()
    ended, out, _ = call(capsys, *command)
    assert ended == 0
    assert f"going on from run/resume-{done:08d}.pt" in out
    assert computed == list(range(1, 9)), "no step twice"
    assert same(undisturbed["weights"], weights("model.pt"))
    assert rows() == undisturbed["rows"]


def test_saving_every_step_changes_nothing_and_times_add_up(capsys, undisturbed):
    code, out, _ = call(capsys, *RUN, "--checkpoint-every", "0")
    assert code == 0
    assert same(undisturbed["weights"], weights("model.pt"))
    summary = json.loads(out.splitlines()[-1])
    assert 0 < summary["save_seconds"] < summary["train_seconds"] + 1
    assert sum(row["train_seconds"] for row in log()) == pytest.approx(summary["train_seconds"])
    assert resume.find("run", "").seconds["train"] <= summary["train_seconds"]


def test_the_time_that_an_epoch_waited_for_data_counts_over_a_stop(capsys, monkeypatch, at_step):
    real = DaliLoader.epoch

    def slow(own, epoch, start=0):
        for batch in real(own, epoch, start):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(DaliLoader, "epoch", slow)
    at_step({3: terminate})
    assert call(capsys, *RUN)[0] == 143
    code, out, _ = call(capsys, "--resume", "run")
    assert code == 0
    for row in log():
        assert STEPS * 0.1 <= row["wait_seconds"] <= row["train_seconds"]
    for kind in ("train_seconds", "wait_seconds"):
        assert sum(row[kind] for row in log()) == pytest.approx(json.loads(out.splitlines()[-1])[kind])


def test_a_run_goes_on_in_another_folder_with_the_whole_log(capsys, at_step, undisturbed):
    at_step({6: terminate})
    assert call(capsys, *RUN)[0] == 143
    os.rename("run", "moved")
    free = ["--run-dir", "other", "--out", "other.pt", "--checkpoint-every", "5"]
    assert call(capsys, "--resume", "moved", *HOW, *free)[0] == 0
    assert rows("other") == undisturbed["rows"]
    assert json.loads(Path("other/config.json").read_text())["run_dir"] == "other"
    assert call(capsys, "--resume", "moved", *HOW)[0] == 0
    assert same(weights("model.pt"), weights("other.pt"))
    foreign = "model.pt is not a resume checkpoint"
    for wrong, message in (("--seed 7 --resume moved", "--seed 0 -> 7"), ("--resume model.pt", foreign)):
        err = refused(capsys, *wrong.split())
        assert message in err


def test_the_second_run_in_a_folder_is_told_who_holds_it(capsys):
    with RunFolder("run") as folder:
        folder.write_config({})
        assert f"run is in use by process {os.getpid()} on " in refused(capsys, *RUN)
        assert Path("run/config.json").read_text() == "{}\n", "left alone"
    assert call(capsys, *RUN, "--epochs", "1")[0] == 0


# Failures under way


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA allocation failed: out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_batch_and_one_to_try(capsys, monkeypatch, error):
    monkeypatch.setattr(Learner, "train_step", Mock(side_effect=error))
    assert refused(capsys, *RUN) == "train.py: out of memory on cpu with --batch-size 32: try --batch-size 16\n"
    monkeypatch.setattr(train, "create", Mock(side_effect=error))
    advice = "a narrower network or smaller batches need less; or end other programs"
    assert refused(capsys, *RUN) == f"train.py: out of memory: {advice}\n"


@pytest.mark.parametrize("where", ["engine.learner.evaluate", "run.run.fit_temperature"])
def test_out_of_memory_in_an_evaluation_is_not_blamed_on_the_batch(capsys, monkeypatch, where):
    monkeypatch.setattr(where, Mock(side_effect=MemoryError()))
    said = refused(capsys, *RUN)
    assert said.startswith("train.py: out of memory on cpu while evaluating at ") and "--batch-size" not in said


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="a defect"), memory_advice(32, CPU):
        raise RuntimeError("a defect")


def test_a_loss_that_is_not_finite_leaves_the_state_before_it(capsys, monkeypatch):
    real = Learner.loss

    def spoilt(own, images, labels):
        loss, correct = real(own, images, labels)
        return (loss * float("nan") if own.step == 6 else loss), correct

    monkeypatch.setattr(Learner, "loss", spoilt)
    err = refused(capsys, *RUN, "--checkpoint-every", "0")
    step, indices = json.loads(Path("run/bad_batch.json").read_text()).values()
    assert (step, indices) == (6, Plan(side=32, count=32 * STEPS, batch_size=32).draws(1, 2).indices.tolist())
    named = f"images {', '.join(map(str, indices[:8]))}, ...: all 32 in run/bad_batch.json"
    assert f"the loss was not finite at epoch 2, step 6 ({named}): try a smaller --max-lr; " in err
    assert "last good resume state: run/resume-00000006.pt" in err, "before step 6, counted from 0"
    assert not Path("model.pt").exists()
    monkeypatch.setattr(Learner, "loss", real)
    assert call(capsys, "--resume", "run")[0] == 0


def test_a_disk_that_fills_under_way_is_one_line_and_costs_no_state(capsys, at_step, undisturbed):
    """A limit on the size of files stands in for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step({6: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))})
    try:
        err = refused(capsys, *RUN, "--checkpoint-every", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "run/resume-00000006.pt: " in err
    assert "last good resume state: run/resume-00000005.pt" in err
    assert [path.name for path in resume.states(Path("run"))] == ["resume-00000005.pt", "resume-00000004.pt"]
    assert call(capsys, "--resume", "run", *HOW)[0] == 0
    assert same(undisturbed["weights"], weights("model.pt"))


def test_a_folder_deleted_under_way_is_one_line(capsys, at_step):
    at_step({4: lambda: shutil.rmtree("run")})
    err = refused(capsys, *RUN)
    assert "cannot write run/" in err and "No such file or directory; make room there" in err


# Processes


@pytest.mark.parametrize("data", [[], pytest.param(["--own-pictures"], marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed_equals_undisturbed(tmp_path, data):
    """Six SIGKILLs, two of them in a save, and a SIGTERM; `make crash-test` has more."""
    script = Path(__file__).with_name("crash.py")
    command = [sys.executable, str(script), "--kills", "3", "--terms", "1", *data]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    done = json.loads(result.stdout.splitlines()[-1])
    assert (done["kills"], done["at_saves"], done["terms"], done["equal"]) == (6, 2, 1, 4)


def memory(key):
    """A number of /proc/self/status."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


@pytest.mark.parametrize("steps", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_memory_descriptors_and_threads_do_not_grow(steps):
    config = Config(epochs=1000, width=4, resolutions=(8,), batch_size=16, cutout=4)
    plan = Plan(side=32, count=64, batch_size=16, translate=4, flip="random", cutout=4)
    loader, own = DaliLoader(generated(64), plan, CPU, 1, config.resolution), learner(config)
    seen: list[tuple[int, int, int]] = []
    gc.collect()  # pipelines of tests before this one, with their threads
    for epoch in range(5):
        train_epoch(own, loader.epoch(epoch))
    while len(seen) < steps // 4:
        epoch += 1
        train_epoch(own, loader.epoch(epoch))
        seen.append((memory("VmRSS"), len(os.listdir("/proc/self/fd")), memory("Threads")))
    first, last = seen[len(seen) // 10], seen[-1]
    print(f"{4 * len(seen)} steps: RSS {first[0]} -> {last[0]} kB, {first[1]} descriptors, {first[2]} threads")
    assert last[0] < first[0] * 1.02
    assert last[1] <= first[1] and last[2] <= first[2]


def test_stopped_is_no_error_that_anything_else_takes_for_its_own():
    assert not issubclass(Stopped, ValueError | OSError | ArithmeticError | RuntimeError)
