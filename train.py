"""Train ResNet-18 on CIFAR-10.

    python train.py                       # preset `full` on a CUDA GPU, `cpu` without one
    python train.py cpu --epochs 8        # a preset, then any setting as a flag (--help lists them)
    python train.py --resume runs/mine    # go on where a run stopped, to the same weights
    python train.py cpu --resume auto     # go on if there is something to go on with, else start
    torchrun --standalone --nproc-per-node=4 train.py full      # four GPUs

Writes model.pt (`--out`) and, in the run folder, the log, TensorBoard scalars, curves.png and the resume states. The
last line on stdout is JSON.
"""

import preflight

preflight.require_environment("train.py")
preflight.require_dali()

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from engine import checkpoint, distributed, resume, runtime
from engine.config import PRESETS, default_preset, differences, parse
from engine.distributed import ALONE, World
from engine.learner import Learner, NonFiniteLoss, evaluate, learning_rates
from engine.model import MEAN_COLOUR, create
from engine.stopwatch import Stopwatch
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.splits import training_splits
from report.estimate import train_seconds
from report.progress import Reporter, stdout_console, throughput
from report.run_folder import NoFolder, RunFolder
from report.summary import model_summary


def main(arguments: Sequence[str], world: World = ALONE) -> None:
    preset, config = parse(arguments, default_preset(torch.cuda.is_available()))
    state = world.from_first(lambda: resume.find(config.resume, config.run_dir, world.restarted))
    if state.path:
        preset, config = parse(arguments, preset, state.config)
    preflight.check_driver(config.device)
    device = world.device(config.device)
    precision = runtime.pick_precision(device, config.precision)
    compiled = config.compiles(device.type == "cuda")
    threads = runtime.configure(device, world.threads(config.threads), config.deterministic)
    if world.first:
        checkpoint.check_writable(config.out)
    clock = Stopwatch(state.seconds)

    with clock.on("data"):
        train, held_out = training_splits(config.validate, config.generated)
        plan = Plan(count=len(train.images), rank=world.rank, world=world.size, **config.drawn())
        loader = DaliLoader(train, plan, device, threads, config.resolution, fill=MEAN_COLOUR)
        test = evaluation_loader(held_out, config.resolutions[-1], device, threads, rank=world.rank, world=world.size)

    model = create(config, train.images).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, plan.steps_per_epoch, device, precision, compiled, world)
    if state.path:
        resume.restore(learner, state, config, train.sha256)
    card = runtime.environment_card(device) | world.card()
    about = card | {"threads": str(threads), "precision": precision, "compiled": str(compiled)}
    reporter = Reporter(stdout_console() if world.first else None)
    lrs = learning_rates(config, learner.total_steps)

    with (
        RunFolder(config.run_dir, state, lrs) if world.first else NoFolder(state) as folder,
        runtime.memory_advice(config.batch_size, device),
    ):
        config = replace(config, run_dir=str(folder.path), resume="")
        keeper = resume.Keeper(folder.path, folder.rows, learner, config, train.sha256, about, clock, state, world)
        folder.write_config(checkpoint.config_dict(config))
        reporter.say(model_summary(model, config.resolutions[-1]))
        seconds = train_seconds(config, plan.count // world.size, device, precision)
        full = PRESETS["full"]
        reporter.choice(
            preset=preset,
            config=config,
            device=", ".join(f"{name} {value}" for name, value in card.items()),
            precision=precision,
            compiled=compiled,
            seconds=seconds,
            full_seconds=train_seconds(full, 50_000 // world.size, device, precision, batch_size=16)
            if differences(full, config)
            else seconds,
            run_folder=str(folder.path),
        )
        for note in keeper.notes:
            reporter.say(note)
        if compiled or world.size > 1:
            with clock.on("compile"):
                learner.warm_up(plan.share)

        with keeper:
            for epoch in range(len(folder.rows), config.epochs):
                start, waited = learner.step - epoch * len(loader), clock["wait"]
                batches = keeper.steps(clock.waiting("wait", loader.epoch(epoch, start)))
                with reporter.epoch(epoch + 1, config.epochs, len(loader), plan.batch_size, start) as bar:
                    try:
                        with clock.on("train"):
                            progress = learner.train_epoch(batches, partial(bar.advance, learner.peek))
                    except NonFiniteLoss as error:
                        every = replace(plan, rank=0, world=1).draws(*divmod(error.step, len(loader)))
                        where = folder.note_bad_batch(error.step, every.indices.tolist())
                        advice = f"try a smaller --max-lr; last good resume state: {keeper.saved}"
                        raise ValueError(f"{error} ({where}): {advice}") from None
                with clock.on("eval"):
                    result = evaluate(model, keeper.batches(test), device, precision, False, world)
                took = clock["train"] - folder.total("train_seconds")
                folder.add(
                    learner.row(epoch)
                    | {
                        "train_seconds": took,
                        "wait_seconds": world.largest(clock["wait"] - waited),
                        "eval_seconds": clock["eval"] - folder.total("eval_seconds"),
                        "it_per_s": len(loader) / took,
                        "images_per_s": progress.images / took,
                        "split": held_out.name,
                    }
                    | progress.row()
                    | result.row()
                )
                reporter.row(folder.rows[-1])
                keeper.epoch_done()

            with clock.on("eval"):
                tests = (evaluate(model, keeper.batches(test), device, precision, f, world) for f in (False, True))
                plain, flipped = tests
            metrics = {
                **plain.row(),
                "test_accuracy_tta": flipped.accuracy,
                "split": held_out.name,
                "precision": precision,
                **{f"{name}_seconds": value for name, value in clock.seconds().items()},
                "wait_seconds": folder.total("wait_seconds"),
                **throughput([row["images_per_s"] for row in folder.rows]),
                "peak_memory_bytes": runtime.peak_memory(device),
            }
            if world.first:
                with keeper.saving_if_this_fails():
                    checkpoint.save_model(config.out, model, config, metrics)
    reporter.finish(metrics | {"checkpoint": config.out, "environment": card})


if __name__ == "__main__":
    distributed.run(main, "train.py")
