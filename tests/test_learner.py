"""Learning: it learns, repeats and resumes bitwise, follows the schedule, and reports what happened."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine import checkpoint
from engine.config import PRESETS, Config
from engine.device import configure, cpu_info, pick_device, pick_precision
from engine.learner import Learner, NonFiniteLoss, evaluate
from engine.machine import Machine
from engine.model import ResNet, create
from engine.optimizer import one_cycle
from engine.warm_up import warm_up
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.synthetic import generated
from tests.learning import train_epoch

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = replace(PRESETS["smoke"], epochs=2, resolutions=(16,), batch_size=32)


def start(config=SMALL, count=128, precision="fp32", compiled=False, device=CPU):
    """A learner, its loader and its plan, on generated images."""
    split = generated(count)
    drawn = config.drawn() | {"seed": 0, "cutout": 4}
    plan = Plan(side=32, count=count, **drawn)
    loader = DaliLoader(split, plan, device, 2, config.resolution)
    model = create(config, split).to(device).to(memory_format=torch.channels_last)
    return Learner(model, config, plan.steps_per_epoch, Machine(device, precision, compiled=compiled)), loader


def weights(learner):
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one | two)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_overfits_32_images(precision):
    split = generated(32)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(split.labels).long()
    config = replace(SMALL, epochs=1, label_smoothing=0.0)
    model = create(config, split).to(memory_format=torch.channels_last)
    learner = Learner(model, config, 60, Machine(CPU, precision))
    first = learner.evaluate([(images, labels)])
    train_epoch(learner, [(images, labels)] * 60)
    last = learner.evaluate([(images, labels)])
    assert first.accuracy < 0.5 and last.accuracy == 1.0 and last.loss < 0.1


@pytest.mark.parametrize(("precision", "muon_lr"), [("fp32", 0.0), ("bf16", 0.0), ("bf16", 0.1)])
def test_two_runs_give_bitwise_equal_weights(precision, muon_lr):
    results = []
    for _ in range(2):
        learner, loader = start(replace(SMALL, muon_lr=muon_lr), precision=precision)
        for epoch in range(2):
            train_epoch(learner, loader.epoch(epoch))
        results.append(weights(learner))
    assert same(*results)


@pytest.mark.parametrize(("precision", "muon_lr"), [("fp32", 0.0), ("bf16", 0.0), ("fp32", 0.1)])
def test_resuming_anywhere_equals_going_on_bitwise(precision, muon_lr):
    """From states that are copies: they are written when their learner has gone on to the end."""
    config = replace(SMALL, epochs=3, resolutions=(16, 24, 32), muon_lr=muon_lr)
    whole, loader = start(config, precision=precision)
    rows, states = [], []
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            states.append(whole.state_dict())
            whole.train_step(*batch)
        rows.append(whole.end_epoch())
    states.append(whole.state_dict())
    for stop in (0, 1, 3, 4, 6, 11, 12):
        file = io.BytesIO()
        torch.save(states[stop], file)
        file.seek(0)
        resumed, loader = start(replace(config, seed=9), precision=precision)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert resumed.step == stop
        for epoch in range(max(0, stop - 1) // 4, 3):
            assert train_epoch(resumed, loader.epoch(epoch, resumed.step - epoch * 4)) == rows[epoch]
        assert checkpoint.digest(resumed.state_dict()) == checkpoint.digest(states[12]), stop


def test_weights_or_a_loss_that_are_not_finite_are_never_a_good_state():
    learner, loader = start()
    learner.train_step(*next(iter(loader)))
    learner.check_finite()
    next(learner.model.parameters()).data[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match="weights were not finite at epoch 1, step 0"):
        learner.check_finite()
    learner, loader = start(replace(SMALL, max_lr=1e30, div_factor=1.0, lookahead=False))
    with pytest.raises(NonFiniteLoss, match=r"loss was not finite at epoch 1, step \d") as caught:
        train_epoch(learner, loader.epoch(0))
    assert 1 <= caught.value.step <= 3


@pytest.mark.parametrize(
    ("pct_start", "div_factor", "steps"), [(0.3, 5.0, 40), (0.2, 25.0, 7), (0.37, 1.0, 194), (0.1, 3.0, 1)]
)
def test_the_schedule_is_torchs_onecycle_to_the_last_bit(pct_start, div_factor, steps):
    config = replace(SMALL, pct_start=pct_start, div_factor=div_factor)
    for peak in (0.7, 1.6, 0.1):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        oracle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, steps, pct_start=pct_start, anneal_strategy="linear", cycle_momentum=False,
            div_factor=div_factor,
        )  # fmt: skip
        for step in range(steps):
            assert one_cycle(config, peak, step, steps) == optimizer.param_groups[0]["lr"]
            optimizer.step()
            oracle.step()
    config = replace(SMALL, pct_start=0.2)
    falling = [one_cycle(config, 1.0, step, 5) for step in range(5)]  # torch divides by 0 here
    assert falling[0] == 1.0 and falling == sorted(falling, reverse=True)


def test_each_group_has_the_schedule_under_its_own_peak():
    config = replace(SMALL, max_lr=0.5, bias_lr_scale=3.0, muon_lr=0.2)
    learner = Learner(ResNet("abcdefghij", width=8), config, 3, Machine(CPU))
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    for step in range(6):
        assert learner.lr_at(step) == one_cycle(config, 0.5, step, 6)
        learner.train_step(images, labels)
        rates = [group["lr"] for group in learner.optimizer.param_groups]
        assert rates == [one_cycle(config, peak, step, 6) for peak in (0.5, 0.5, 1.5, 0.2)]
    assert learner.lr_at(6) == 0


def test_one_step_equals_the_textbook():
    """Nesterov SGD on the smoothed cross-entropy, decay on weights alone, biases' rate scaled."""
    config = replace(SMALL, lookahead=False, weight_decay=0.1, label_smoothing=0.2, bias_lr_scale=2.0)
    learner = Learner(ResNet("abcdefghij", width=8), config, 10, Machine(CPU))
    oracle = ResNet("abcdefghij", width=8)
    oracle.load_state_dict(learner.model.state_dict())
    images = torch.from_numpy(generated(16).images).permute(0, 3, 1, 2)
    labels = torch.arange(16) % 10
    log = oracle(images).log_softmax(1)
    target = torch.full((16, 10), 0.02).scatter(1, labels[:, None], 0.82)
    loss = -(target * log).sum(1).mean()
    loss.backward()
    rate = config.max_lr / config.div_factor
    learner.model.train()
    learner.train_step(images, labels)
    for (name, parameter), own in zip(oracle.named_parameters(), learner.model.parameters(), strict=True):
        matrix, bias = parameter.ndim > 1, name.endswith("bias")
        assert parameter.grad is not None
        gradient = parameter.grad + 0.1 * parameter.detach() * matrix
        # Nesterov's first step: the gradient plus momentum times the velocity, which is the gradient.
        expected = parameter.detach() - rate * (2.0 if bias else 1.0) * 1.9 * gradient
        assert torch.allclose(own, expected, rtol=1e-4, atol=1e-6), name


def test_epoch_metrics_are_those_of_its_batches():
    learner, _ = start(replace(SMALL, lookahead=False))
    images = torch.from_numpy(generated(48).images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(generated(48).labels).long()
    batches = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    steps = []

    def noted():
        for batch in batches:
            yield batch
            steps.append(learner.peek())

    progress = train_epoch(learner, noted())
    assert [step.images for step in steps] == [32, 48]
    first, second = steps[0].last_loss, steps[1].last_loss
    assert progress.loss == pytest.approx((32 * first + 16 * second) / 48)
    assert progress == steps[1]
    correct = round(progress.accuracy * 48)
    assert correct == round(steps[0].last_accuracy * 32) + round(steps[1].last_accuracy * 16)
    assert learner.peek() == progress, "kept for a state that is saved before the next epoch"
    learner.step = learner.steps_per_epoch
    learner.train_step(*batches[0])
    assert learner.peek().images == 32


def test_lookahead_pulls_every_five_steps_and_ends_on_the_slow_weights():
    learner, loader = start(replace(SMALL, epochs=3))
    plain, _ = start(replace(SMALL, epochs=3, lookahead=False))
    batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    for step, batch in enumerate(batches, start=1):
        for own in (learner, plain):
            own.model.train()
            own.train_step(*batch)
        if step == 4:
            assert same(weights(learner), weights(plain))
        if step == 5:
            assert not same(weights(learner), weights(plain))
    floating = [n for n, t in learner.model.state_dict().items() if t.is_floating_point()]
    slow = dict(zip(floating, learner.lookahead.slow, strict=True))
    assert step == learner.total_steps == 12
    assert all(torch.equal(learner.model.state_dict()[name], tensor) for name, tensor in slow.items())


def test_balanced_classes_count_the_same_however_many_images_they_have():
    """The loss over a whole set is then the mean of the classes' own mean losses."""
    split = generated(200)
    split = split.take(np.flatnonzero((split.labels > 3) | (np.arange(200) < 60)), "few of some classes")
    images, labels = torch.from_numpy(split.images).permute(0, 3, 1, 2), torch.from_numpy(split.labels)
    losses = []
    for balance in (True, False):
        config = replace(SMALL, balance=balance, label_smoothing=0.0)
        learner = Learner(create(config, split), config, 1, Machine(CPU))
        losses.append(float(learner.loss(images, labels)[0].detach()))
        each = F.cross_entropy(learner.model(images), labels, reduction="none").detach()
    by_class = np.mean([float(each[labels == c].mean()) for c in range(10)])
    assert losses == pytest.approx([by_class, float(each.mean())], rel=1e-5) and losses[0] != pytest.approx(losses[1])
    assert "loss_weights" not in learner.model.state_dict()


def test_evaluation_equals_a_plain_count_and_leaves_the_model_alone():
    model = ResNet("abcdefghij", width=8, resolution=32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split = generated(70)
    test = evaluation_loader(split, 32, CPU, 2, batch_size=32)
    result, flipped = (evaluate(model, test, Machine(CPU), flip) for flip in (False, True))
    assert model.training
    assert same(before, model.state_dict())
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(split.labels).long()
    with torch.no_grad():
        model.eval()
        logits, mirrored = model(images), model(images.flip(3))
    assert result.total == 70
    right = logits.argmax(1) == labels
    assert result.correct == int(right.sum())
    by_class = [right[labels == c].double().mean() for c in labels.unique()]
    assert result.class_accuracy == pytest.approx(np.mean(by_class))
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert flipped.correct == int(((logits + mirrored).argmax(1) == labels).sum())
    assert flipped.loss == pytest.approx(F.cross_entropy((logits + mirrored) / 2, labels).item(), rel=1e-5)


def test_compiled_training_has_one_graph_and_learns_the_same():
    import torch._dynamo

    torch._dynamo.reset()
    eager, loader = start(replace(SMALL, epochs=1))
    compiled, _ = start(replace(SMALL, epochs=1))
    compiled.use_backend("aot_eager")
    before = weights(compiled)
    assert warm_up(compiled, 32) == []
    assert same(before, weights(compiled))
    assert compiled.step == 0
    for learner in (eager, compiled):
        train_epoch(learner, loader.epoch(0))
    for name, tensor in weights(eager).items():
        assert torch.allclose(tensor.float(), weights(compiled)[name].float(), rtol=1e-3, atol=1e-4), name


def test_after_the_warm_up_nothing_is_compiled_again(monkeypatch):
    """Three resolutions, more than the limit of graphs set here, evaluation in between, a smaller batch."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    sides = (8, 9, 10)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    configure(CPU, 1)  # which raises the limit
    learner, loader = start(replace(SMALL, epochs=len(sides), resolutions=sides), count=64)
    learner.use_backend("aot_eager")
    warm_up(learner, 32)
    assert counters["stats"]["unique_graphs"] == len(sides)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    test = evaluation_loader(generated(40), sides[-1], CPU, 1, batch_size=32)
    for epoch in range(len(sides)):
        train_epoch(learner, loader.epoch(epoch))
        assert learner.evaluate(test).total == 40
    assert counters["stats"]["unique_graphs"] == len(sides)
    assert not counters["graph_break"]
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    learner.train_step(*(half[:16] for half in next(iter(loader.epoch(0)))))  # what a new shape would look like
    assert counters["stats"]["unique_graphs"] == len(sides) + 1


def test_precision_follows_cuda_capability(monkeypatch):
    for capability, precision in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert pick_precision(torch.device("cuda", 0)) == precision
        assert pick_precision(torch.device("cuda", 0), "fp32") == "fp32"


@pytest.mark.parametrize(
    ("vendor", "flags", "precision"),
    [
        ("AuthenticAMD", "fpu avx512_bf16", "bf16"),
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("GenuineIntel", "fpu avx512_bf16 avx512_fp16", "fp32"),
        ("AuthenticAMD", "fpu avx512f avx2", "fp32"),
        ("", "", "fp32"),
    ],
)
def test_precision_follows_the_cpus_maker_and_flags(monkeypatch, tmp_path, vendor, flags, precision):
    cpuinfo = tmp_path / "cpuinfo"
    first = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: X\nflags\t\t: {flags}\n"
    cpuinfo.write_text(f"{first}\nprocessor\t: 1\nflags\t: amx_bf16\n")
    read = cpu_info
    assert read("flags", cpuinfo) == flags
    assert read("flags", tmp_path / "none") == ""
    monkeypatch.setattr("engine.device.cpu_info", lambda field: read(field, cpuinfo))
    assert pick_precision(CPU) == precision


def test_fp16_on_a_cpu_and_cuda_without_a_gpu_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="--precision is fp16 on a CPU"):
        pick_precision(CPU, "fp16")
    with pytest.raises(ValueError, match="precision 'int8' is unknown"):
        pick_precision(CPU, "int8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, but torch finds no usable NVIDIA GPU"):
        pick_device("cuda")
    assert pick_device("auto") == CPU


def test_resolutions_spread_evenly_over_the_epochs():
    config = Config(epochs=5, resolutions=(16, 16, 20, 24))
    assert [config.resolution(epoch) for epoch in range(5)] == [16, 16, 20, 24, 24]
    for epochs in range(1, 9):
        sides = [replace(config, epochs=epochs).resolution(epoch) for epoch in range(epochs)]
        assert sides == sorted(sides) and sides[-1] == 24, "it is evaluated at the last one"
    assert {Config(epochs=7).resolution(epoch) for epoch in range(7)} == {32}


@pytest.mark.gpu
def test_an_epoch_on_a_gpu_never_waits_for_it_and_learns():
    device = torch.device("cuda", 0)
    config = replace(SMALL, epochs=6, resolutions=(32,))
    split = generated(512)
    plan = Plan(side=32, count=512, batch_size=32, translate=4, flip="random", cutout=8)
    loader = DaliLoader(split, plan, device, 2, config.resolution)
    model = create(config, split).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, plan.steps_per_epoch, Machine(device, pick_precision(device)))
    warm_up(learner, 32)
    train_epoch(learner, loader.epoch(0))
    model.train()
    batches = loader.epoch(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches:
            learner.train_step(images, labels)
            learner.peek()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for epoch in range(2, 6):
        train_epoch(learner, loader.epoch(epoch))
    result = learner.evaluate(evaluation_loader(split, 32, device, 2))
    assert result.accuracy > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_on_a_gpu_are_the_uncompiled_ones(monkeypatch, mode, muon_lr):
    """Two resolutions; CUDA graphs are used, of the whole step or torch.compile's, and nothing is compiled after them.

    The learning rates are small, so that rounding does not grow: at the recipe's own, losses part by 2% in 8 steps.
    """
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    config = replace(SMALL, resolutions=(16, 32), max_lr=0.01, muon_lr=muon_lr, compile_mode=mode)
    losses = []
    for compiled in (False, True):
        learner, loader = start(config, compiled=compiled, device=torch.device("cuda", 0))
        if compiled:
            notes = warm_up(learner, 32)
            monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
            assert notes == [] and len(learner.graphs) == (2 if mode == "default" else 0)
        losses.append([train_epoch(learner, loader.epoch(0)).loss])
        state = learner.state_dict()
        losses[-1].append(train_epoch(learner, loader.epoch(1)).loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    learner.load_state_dict(state)
    warm_up(learner, 32)
    again = train_epoch(learner, loader.epoch(1)).loss
    assert again == pytest.approx(losses[1][1], rel=0.02), "it goes on from a state"
    assert not counters["graph_break"] and not counters["inductor"]["cudagraph_skips"]


def test_deterministic_leaves_a_cpu_alone():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    configure(CPU, 1, deterministic=True)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


@pytest.mark.gpu
def test_deterministic_runs_on_a_gpu_are_equal_bitwise(tmp_path):
    """In processes of their own: CUDA reads some of it when it starts."""
    found = []
    for name in ("a", "b"):
        command = [sys.executable, str(ROOT / "train.py"), "smoke", "--deterministic", "--out", f"{name}.pt"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        found.append(checkpoint.load(tmp_path / f"{name}.pt").model.state_dict())
    assert same(*found)
