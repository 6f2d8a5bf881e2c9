"""The plan: pure, complete, fair, and the same for one process and for many."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import Plan

AUGMENTED: dict[str, Any] = {"side": 32, "translate": 4, "flip": "random", "cutout": 8}


def test_the_same_place_gives_the_same_draws_and_another_gives_others():
    def draws(seed=5, epoch=3, iteration=2):
        return vars(Plan(count=500, batch_size=64, seed=seed, **AUGMENTED).draws(epoch, iteration)).values()

    assert all(np.array_equal(a, b) for a, b in zip(draws(), draws(), strict=True))
    for other in (draws(seed=6), draws(epoch=4), draws(iteration=3)):
        assert not any(np.array_equal(a, b) for a, b in zip(draws(), other, strict=True))


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 7), (False, 8)])
def test_every_image_appears_once_an_epoch(drop_last, steps):
    plan = Plan(side=32, count=500, batch_size=64, drop_last=drop_last)
    assert plan.steps_per_epoch == steps
    for epoch in range(2):
        seen = np.concatenate([plan.draws(epoch, i).indices for i in range(steps)])
        assert len(set(seen.tolist())) == len(seen) == min(500, steps * 64)
        assert not np.array_equal(seen, np.sort(seen))


def test_without_shuffle_the_order_is_the_data_sets():
    plan = Plan(side=32, count=10, batch_size=4, shuffle=False, drop_last=False)
    assert [plan.draws(7, i).indices.tolist() for i in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(8, 70),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
    flip=st.sampled_from(["random", "alternating", "both"]),
)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_share_the_batch_that_one_process_sees(world, batch_size, seed, epoch, flip):
    given_all: dict[str, Any] = AUGMENTED | {"count": 100, "batch_size": batch_size, "seed": seed, "flip": flip}
    alone = Plan(**given_all)
    ranks = [Plan(**given_all, rank=rank, world=world) for rank in range(world)]
    assert {plan.steps_per_epoch for plan in ranks} == {alone.steps_per_epoch}
    for iteration in range(alone.steps_per_epoch):
        parts = [plan.draws(epoch, iteration) for plan in ranks]
        assert [len(part.indices) for part in parts] == [plan.share for plan in ranks]
        for name, expected in vars(alone.draws(epoch, iteration)).items():
            together = np.empty_like(expected)
            for rank, part in enumerate(parts):
                together[rank::world] = getattr(part, name)
            assert np.array_equal(together, expected), name


@given(count=st.integers(1, 40), batch_size=st.integers(1, 40), world=st.integers(1, 8))
def test_ranks_with_whole_batches_take_each_of_them_once(count, batch_size, world):
    sizes: dict[str, Any] = {"side": 8, "count": count, "batch_size": min(batch_size, count), "shuffle": False}
    alone = Plan(**sizes, drop_last=False)
    expected = [alone.draws(0, i).indices.tolist() for i in range(alone.steps_per_epoch)]
    for rank in range(world):
        own = Plan(**sizes, drop_last=False, rank=rank, world=world, whole=True)
        assert [own.draws(0, i).indices.tolist() for i in range(own.steps_per_epoch)] == expected[rank::world]
        assert own.share == sizes["batch_size"]


def test_crops_flips_and_squares_cover_their_ranges_evenly():
    draws = Plan(count=20_000, batch_size=20_000, **AUGMENTED).draws(0, 0)
    counts = np.stack([np.bincount(draws.crop[:, axis], minlength=9) for axis in range(2)])
    assert counts.shape == (2, 9)
    assert np.abs(counts / 20_000 - 1 / 9).max() < 0.01
    assert abs(draws.flip.mean() - 0.5) < 0.02
    height, width = draws.cutout[:, 2] - draws.cutout[:, 0], draws.cutout[:, 3] - draws.cutout[:, 1]
    assert draws.cutout.min() == 0
    assert draws.cutout.max() == 32
    assert (height.max(), width.max()) == (8, 8)
    assert height.min() >= 4  # a centre at the border leaves half of the square
    assert set(draws.cutout[:, 0].tolist()) == set(range(32 - 4))


def test_alternating_flips_mirror_each_image_in_every_second_epoch():
    plan = Plan(side=32, count=1000, batch_size=1000, shuffle=False, flip="alternating")
    flips = [plan.draws(epoch, 0).flip for epoch in range(4)]
    assert np.array_equal(flips[0], 1 - flips[1])
    assert np.array_equal(flips[0], flips[2])
    assert 400 < flips[0].sum() < 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 11}, "--batch-size is 11: it must be 1 to 10"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"world": 6}, "--batch-size is 5: it must be 6"),
        ({"translate": 5}, "--translate is 5: it must be 0 to 4 for images of 8 pixels"),
        ({"cutout": 9}, "--cutout is 9: it must be 0 to 8 for images of 8 pixels"),
        ({"flip": "vertical"}, "flip is 'vertical'"),
    ],
)
def test_impossible_plans_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"side": 8, "count": 10, "batch_size": 5} | change)
