"""Muon: torch's SGD where it is SGD, and an orthogonal update, by the singular values, where it is Muon."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.config import PRESETS
from engine.model import ResNet, parameter_groups
from engine.optimizer import QUINTIC, ROUNDS, Muon, create_optimizer, newton_schulz, orthogonalize


def test_without_orthogonal_groups_it_is_torch_s_sgd():
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(5, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    one = Muon(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for step in range(5):
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(torch.full((2, 5), step + 1.0, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 32, 64), (1, 8, 8)])
def test_newton_schulz_keeps_singular_vectors_and_brings_the_values_near_1(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = newton_schulz(matrices)
    values = left.mT @ result @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-10
    assert diagonal.min() > 0.3 and diagonal.max() < 1.3 and 0.7 < diagonal.median() < 1.2
    torch.testing.assert_close(newton_schulz(100 * matrices), result, rtol=1e-5, atol=1e-6)


def one_by_one(update):
    """What Muon makes of one filter bank: the iteration, on its singular values alone."""
    left, values, right = torch.linalg.svd(update.flatten(1), full_matrices=False)
    values = values / (values.norm() + 1e-7)
    for _ in range(ROUNDS):
        a, b, c = QUINTIC
        values = a * values + b * values**3 + c * values**5
    return ((left * values) @ right).view(update.shape)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_matrices_that_go_together_become_what_each_becomes_alone(padded, memory_format):
    """The filters of the network, wide and tall, in float64."""
    torch.manual_seed(0)
    shapes = [p.shape for p in parameter_groups(ResNet("abcdefghij", width=8))[0]]
    assert any(out > channels * height * width for out, channels, height, width in shapes)
    random = [10.0 ** (i % 5) * torch.randn(shape).double() for i, shape in enumerate(shapes)]
    updates = [update.contiguous(memory_format=memory_format) for update in random]
    for update, result in zip(updates, orthogonalize(updates, torch.float64, padded), strict=True):
        assert result.stride() == update.stride()
        torch.testing.assert_close(result, one_by_one(update), rtol=0, atol=1e-12)


def test_results_have_the_updates_type():
    updates = [torch.randn(16, 8, 3, 3), torch.randn(32, 16, 1, 1)]
    results = orthogonalize(updates, torch.bfloat16, padded=True)
    for update, result in zip(updates, results, strict=True):
        assert result.dtype == torch.float32
        assert (result - one_by_one(update)).norm() < 0.05 * result.norm()


def test_a_filter_bank_has_norm_sqrt_out_before_its_update_of_length_lr():
    filters = nn.Parameter(torch.randn(16, 8, 3, 3))
    optimizer = Muon([{"params": [filters], "orthogonal": True}], lr=0.25, momentum=0.6)
    before = filters.detach().clone()
    filters.grad = torch.randn_like(filters)
    optimizer.step()
    update = filters.detach() - before * 4 / before.norm()
    expected = -0.25 * newton_schulz(filters.grad.flatten(1)[None])[0].view_as(filters)  # the first momentum: parallel
    torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-4)


def test_a_config_chooses_and_every_parameter_is_optimized_once():
    model = ResNet("abcdefghij", width=8)
    config = replace(PRESETS["full"], max_lr=0.3, bias_lr_scale=2.0, weight_decay=1e-3, muon_lr=0.1, muon_momentum=0.7)
    muon = create_optimizer(model, config, torch.float32)
    sgd = create_optimizer(model, replace(config, muon_lr=0.0), torch.float32)
    assert isinstance(muon, Muon) and isinstance(sgd, torch.optim.SGD)
    for optimizer in (muon, sgd):
        every = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(every) == sorted(id(p) for p in model.parameters())
        assert [group["lr"] for group in optimizer.param_groups[:3]] == [0.3, 0.3, 0.6]
        assert [group["weight_decay"] for group in optimizer.param_groups[:3]] == [1e-3, 0, 0]
    group = muon.param_groups[3]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.7, 0)
    assert {id(p) for p in group["params"]} == {id(p) for p in parameter_groups(model)[0]}
