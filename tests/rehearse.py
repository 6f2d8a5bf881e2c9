"""The CUDA path, rehearsed without a GPU (see rehearsal.py): it runs, a step never waits, and launches few kernels.

python -m pytest tests/rehearse.py      # with any Python that has torch, 2.11 on, and pytest
"""

import copy
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from engine import learner as learning
from engine import model as modelling
from engine.config import PRESETS
from engine.learner import Learner, evaluate
from engine.machine import Machine
from engine.model import ResNet
from engine.warm_up import warm_up
from explain import faithfulness
from explain.cam import METHODS, check_class_maps, heatmaps
from explain.cases import Cases
from explain.explainer import Explainer
from tests.rehearsal import GPU, ROOT, HostValues, Watch, batch, generate, on_gpu, pretend

CLASSES = tuple("abcdefghij")
FULL = replace(PRESETS["full"], resolutions=(32,))
MUON = 134
"""Kernels of an update by Muon, at most: 48 are products that first copy what they add to, 12 other products."""
COMPILED = 240
"""Kernels of the compiled forward and backward pass, at most."""
METRICS = 16
"""Kernels of the metrics and of lookahead in a step, at most."""


def start(muon=True, precision="bf16", learner=learning, model=modelling, stem="small"):
    config = replace(FULL, muon_lr=0.1 if muon else 0.0)
    return learner.Learner(on_gpu(model.ResNet(CLASSES, stem=stem)), config, 97, Machine(GPU, precision))


def step(learner):
    """The next training step of a full batch, watched, and a look at its metrics."""
    learner.model.train()
    with Watch() as seen:
        learner.train_step(*batch(512, 32))
        learner.peek()
    return seen


@pytest.mark.parametrize(
    ("precision", "muon", "stem"),
    [*product(["bf16", "fp32"], [True, False], ["small"]), ("bf16", False, "imagenet")],
)
def test_a_step_never_waits_and_uploads_nothing(precision, muon, stem):
    """Recorded as a CUDA graph, replayed, and launched kernel by kernel. The fifth step has lookahead."""
    with pretend():
        learner = start(muon, precision, stem=stem)
        with Watch() as warming:
            notes = warm_up(learner, 512)
        assert notes == []
        recorded = learner.graphs[batch(512, 32)[0].shape]._graph.seen
        learner.step = 4
        replayed = step(learner)
        learner.graphs.clear()
        learner.step = 4
        launched = step(learner)
    for seen in (warming, recorded, replayed, launched):
        assert not seen.waits and not seen.uploads
    assert not recorded.strays and not launched.strays
    assert 0 < recorded.kernels["optimizer"] <= (MUON if muon else 3)
    assert recorded.kernels["metrics"] + launched.kernels["lookahead"] <= METRICS
    assert sum(replayed.kernels.values()) <= 14, "the batch, its number, the learning rates, lookahead and the look"


@pytest.mark.slow
def test_the_compiled_passes_launch_few_kernels():
    """The code that torch.compile writes for an H100, down to machine code: 116 and 122 (torch 2.11 and 2.15)."""
    with pretend():
        model = on_gpu(ResNet(CLASSES)).train()
        calls = generate(learning._forward_and_loss, model, *batch(512, 32), 0.1, "bf16")
    kernels = {name: sum(n for call, n in of.items() if "assert" not in call) for name, of in calls.items()}
    assert 0 < sum(kernels.values()) <= COMPILED, kernels
    assert all(sum(n for call, n in of.items() if "convolution" in call) for of in calls.values()), calls
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.stride(), parameter.grad.dtype) == (parameter.stride(), torch.float32)


def test_in_fp16_muon_reads_the_scaler_once_a_step():
    """As each torch optimizer without a kernel of its own does; fp16 is for GPUs before Ampere alone."""
    with pretend():
        seen = step(start(precision="fp16"))
    assert len(seen.waits) == 1 and not seen.uploads and not seen.strays


def planted(module, old, new):
    """A module of the project with a fault, and the line that it is in."""
    path = Path(module.__file__)
    source = path.read_text()
    before, after = source.split(old)
    faulty = ModuleType(module.__name__)
    exec(compile(before + new + after, path, "exec"), vars(faulty))
    return faulty, f"{path.relative_to(ROOT)}:{len(before.splitlines())}"


def test_a_read_and_an_upload_in_the_step_are_found():
    faulty, line = planted(learning, "self.scaler.update()", "self.scaler.update(); loss.item()")
    with pretend():
        seen = step(start(learner=faulty))
    assert len(seen.waits) == 1 and seen.waits[0].endswith(f" at {line}")
    old = "self.optimizer.zero_grad(set_to_none=True)\n        self.metrics"
    faulty, line = planted(learning, old, old.replace("\n", "; torch.zeros(9).to(self.machine.device)\n"))
    with pretend():
        assert step(start(learner=faulty)).uploads == [f"_to_copy at {line}"]


def test_metrics_on_the_cpu_are_found():
    faulty, line = planted(learning, "self.values[:3] += last", "self.values[:3] += torch.zeros(3).double()")
    with pretend(), pytest.raises(RuntimeError, match="devices") as caught:
        step(start(learner=faulty))
    assert caught.value.__notes__ == [f"in add_ at {line}"]


def test_another_layout_is_found():
    faulty, line = planted(modelling, "self.bn1(self.conv1(x))", "self.bn1(self.conv1(x.contiguous()))")
    with pretend():
        seen = step(start(model=faulty))
    assert {stray.rpartition(" at ")[2] for stray in seen.strays} - {"the backward pass"} == {line}


def test_a_graph_break_is_found():
    old = "logits = model(images)\n    correct"
    faulty, line = planted(learning, old, old.replace("\n", "; print(logits)\n"))
    with pretend(), pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        learner = start(learner=faulty)
        learner.use_backend("eager")
        learner.train_step(*batch(512, 32))
    path, number = line.split(":")
    assert f'{path}", line {number}' in str(caught.value)


def test_evaluation_and_checkpoints_run():
    with pretend(), HostValues():
        learner = start()
        step(learner)
        for flip in (False, True):
            with Watch(1) as seen:
                evaluate(learner.model, [batch(100, 32)] * 2, learner.machine, flip)
            assert not seen.uploads and len(seen.waits) == 3, "the three sums, at the end"
        with Watch(math.inf):
            learner.check_finite()
        with Watch():
            state = learner.state_dict()
            learner.load_state_dict(state)
            learner.model.predict(torch.zeros(10, 40, 40, 3, dtype=torch.uint8))


def test_explanations_run(monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda model: on_gpu(ResNet(CLASSES)))  # fake tensors refuse it
    monkeypatch.setattr(faithfulness, "DRAWS", 1)
    monkeypatch.setattr(faithfulness, "STEPS", 2)
    with pretend(), HostValues(), Watch():
        explainer = Explainer(on_gpu(ResNet(CLASSES)).requires_grad_(False).eval(), Machine(GPU, "bf16"))
        images, labels = batch(100, 32)
        for layer in ("stem", "layer1", "layer4"):
            for method in METHODS:
                heatmaps(explainer.model, images, labels.cpu(), layer, method)
        check_class_maps(explainer.model, images[:8])
        logits, _, class_maps, inputs = explainer.examine([(images, labels)])
        some = np.arange(100)
        cases = Cases(
            name="test", total=100, classes=CLASSES, index=some, labels=some % 10, logits=logits,
            class_maps=class_maps, inputs=inputs, pictures=np.zeros((100, 32, 32, 3), np.uint8),
            disputed=some < 0,
        )  # fmt: skip
        maps = explainer.explain(cases, "layer3", "gradcam", "margin", several=True)
        assert maps.chosen.shape == (100, 8, 8)
        explainer.explain(cases, "layer4", "gradcam", CLASSES[0])
        assert faithfulness.measure(explainer, maps).images == 100


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_gradients_are_the_eager_ones(precision):
    """On a CPU. In bf16 only what goes through a convolution may round differently, the head may not."""
    torch._dynamo.reset()
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = ResNet(CLASSES, width=8).to(memory_format=torch.channels_last).train()
        learner = Learner(model, FULL, 97, Machine(torch.device("cpu"), precision))
        if compiled:
            learner.use_backend("aot_eager")
        images = torch.randint(256, (32, 3, 16, 16), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        loss, _ = learner.loss(images, torch.arange(32) % 10)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, eager in gradients[0].items():
        difference = float((gradients[1][name] - eager).norm() / eager.norm())
        assert difference <= (1e-6 if precision == "fp32" or name.startswith("fc") else 1e-2), name
