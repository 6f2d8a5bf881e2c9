"""Training fed by each kind of DALI graph, next to training on the synthetic batch, at several batch sizes.

    python -m bench loaders
    python -m bench loaders --batch-sizes 256 512

The kinds: the graph on the training device; and, beside a GPU, the graph on the CPU with its batches copied over.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.core import chart, record
from bench.core.clock import Batch, Lane, measure, race, ratio
from bench.core.record import Result, Row
from bench.core.setup import Say, Settings, Setup, parse, prepare
from bench.speed.suite import finish, settings_of, stdout_console, steps_shown


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    batch_sizes: tuple[int, ...] = (512, 1024, 2048)
    """Sizes to measure."""


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, "python -m bench loaders", (__doc__ or "").split("\n\n")[0])
    if options.batch_size is not None:
        raise ValueError("--batch-size is for one size: loaders takes --batch-sizes 512 1024")
    if not options.batch_sizes:
        raise ValueError("--batch-sizes is empty: name one size or more")
    setup = prepare(replace(options, batch_size=max(options.batch_sizes)))
    setups = [replace(setup, config=replace(setup.config, batch_size=size)) for size in options.batch_sizes]
    stem = record.writable_stem(options.out, "loaders", setup.device)
    console = stdout_console()
    card = record.environment(setup.device, setup.precision, ["loaders", *arguments])
    rows: list[Row] = []
    result = Result("loaders", card, settings_of(setup), rows)
    with steps_shown(console, [1.0] * len(setups)) as (say, finished):
        for one in setups:
            rows += measure_kinds(one, say)
            finished()
            record.save(result, stem)
    finish(result, stem, console, chart.draw_bench)


def measure_kinds(setup: Setup, say: Say) -> list[Row]:
    """Images/s of each kind alone and feeding train_step, over the synthetic batch's."""
    size, part = setup.batch_size, f"batch {setup.batch_size}"
    sources = kinds(setup)
    rows = []
    for name, start in sources.items():
        say(f"{part}: {name}, alone")
        rate = measure(start(), lambda images, labels: None, setup.device, setup.budget(2, warm_up_steps=20))
        rows.append(Row.of_rate(part, f"{name}, alone", rate))
    say(f"{part}: training, fed in turns")
    learner = setup.learner()
    batches: list[Iterable[Batch]] = [setup.synthetic(size), *(start() for start in sources.values())]
    rates, laps = race([Lane(b, learner.train_step, setup.device) for b in batches], setup.budget(3))
    rows.append(Row.of_rate(part, "synthetic batch, training", rates[0]))
    for name, rate, fed in zip(sources, rates[1:], laps[1:], strict=True):
        share = ratio(fed, laps[0])
        note = f"{share.median:.0%} of synthetic, waits for data {rate.waited:.0%} of the time"
        rows.append(Row.of_rate(part, f"{name}, training", rate, note))
    return rows


def kinds(setup: Setup) -> dict[str, Callable[[], Iterator[Batch]]]:
    """Each kind of graph by its name: a function that starts it."""
    size, side = setup.batch_size, setup.side
    if not setup.cuda:
        return {"DALI graph on the CPU": lambda: setup.dali(size, side)}
    return {
        "DALI graph on the GPU": lambda: setup.dali(size, side),
        "DALI graph on the CPU, copied": lambda: _copied(setup.dali(size, side, torch.device("cpu")), setup.device),
    }


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """From page-locked memory, so that the host does not wait for the copy."""
    for images, labels in batches:
        yield tuple(t.pin_memory().to(device, non_blocking=True) for t in (images, labels))  # type: ignore[misc]
