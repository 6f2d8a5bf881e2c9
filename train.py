"""Train ResNet-18 on CIFAR-10.

    python train.py                       # preset `full` on a CUDA GPU, `cpu` without one
    python train.py cpu --epochs 8        # a preset, then any setting as a flag (--help lists them)
    python train.py --resume runs/mine    # go on where a run stopped, to the same weights
    python train.py cpu --resume auto     # go on if there is something to go on with, else start

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

from bench.estimate import train_seconds
from engine import checkpoint, resume, runtime
from engine.config import PRESETS, default_preset, parse
from engine.learner import Learner, NonFiniteLoss, evaluate, learning_rates
from engine.model import MEAN, create
from engine.stopwatch import Stopwatch
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.splits import training_splits
from report.progress import Reporter, stdout_console, throughput
from report.run_folder import RunFolder
from report.summary import model_summary


def main(arguments: Sequence[str]) -> None:
    preset, config = parse(arguments, default_preset(torch.cuda.is_available()))
    state = resume.find(config.resume, config.run_dir)
    if state.path:
        preset, config = parse(arguments, preset, state.config)
    preflight.check_driver(config.device)
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(device, config.precision)
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    threads = runtime.configure(device, config.threads, config.deterministic)
    checkpoint.check_writable(config.out)
    clock = Stopwatch(state.seconds)

    with clock.on("data"):
        train, held_out = training_splits(config.validate, config.generated)
        plan = Plan(
            count=len(train.images),
            batch_size=config.batch_size,
            seed=config.seed,
            translate=config.translate,
            flip=config.flip,
            cutout=config.cutout,
        )
        mean_colour = [round(255 * channel) for channel in MEAN]
        loader = DaliLoader(train, plan, device, threads, config.resolution, fill=mean_colour)
        test = evaluation_loader(held_out, config.resolutions[-1], device, threads)
        data = train.sha256

    model = create(config, train.images).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, plan.steps_per_epoch, device, precision, compiled)
    if state.path:
        resume.restore(learner, state, config, data)
    card = runtime.environment_card(device)
    about = card | {"threads": str(threads), "precision": precision, "compiled": str(compiled)}
    reporter = Reporter(stdout_console())

    with (
        RunFolder(config.run_dir, state, learning_rates(config, learner.total_steps)) as folder,
        runtime.memory_advice(config.batch_size, device),
    ):
        config = replace(config, run_dir=str(folder.path), resume="")
        keeper = resume.Keeper(folder.path, folder.rows, learner, config, data, about, clock, state)
        folder.write_config(checkpoint.config_dict(config))
        reporter.say(model_summary(model, config.resolutions[-1]))
        reporter.choice(
            preset=preset,
            config=config,
            device=", ".join(f"{name} {value}" for name, value in card.items()),
            precision=precision,
            compiled=compiled,
            seconds=train_seconds(config, plan.count, device, precision),
            full_seconds=train_seconds(PRESETS["full"], 50_000, device, precision, batch_size=16),
            run_folder=str(folder.path),
        )
        for note in keeper.notes:
            reporter.say(note)
        if compiled:
            with clock.on("compile"):
                learner.warm_up(plan.batch_size)

        with keeper:
            for epoch in range(len(folder.rows), config.epochs):
                start = learner.step - epoch * len(loader)
                batches = keeper.steps(loader.epoch(epoch, start))
                with reporter.epoch(epoch + 1, config.epochs, len(loader), plan.batch_size, start) as bar:
                    try:
                        with clock.on("train"):
                            progress = learner.train_epoch(batches, partial(bar.advance, learner.peek))
                    except NonFiniteLoss as error:
                        indices = plan.draws(*divmod(error.step, len(loader))).indices.tolist()
                        where = folder.note_bad_batch(error.step, indices)
                        advice = f"try a smaller --max-lr; last good resume state: {keeper.saved}"
                        raise ValueError(f"{error} ({where}): {advice}") from None
                with clock.on("eval"):
                    result = evaluate(model, keeper.batches(test), device, precision)
                took = clock["train"] - folder.total("train_seconds")
                folder.add(
                    {
                        "epoch": epoch + 1,
                        "epochs": config.epochs,
                        "step": learner.step,
                        "steps": learner.total_steps,
                        "resolution": config.resolution(epoch),
                        "lr": learner.lr,
                        "train_seconds": took,
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
                plain, flipped = (evaluate(model, keeper.batches(test), device, precision, f) for f in (False, True))
            metrics = {
                **plain.row(),
                "test_accuracy_tta": flipped.accuracy,
                "split": held_out.name,
                "precision": precision,
                **{f"{name}_seconds": value for name, value in clock.seconds().items()},
                **throughput([row["images_per_s"] for row in folder.rows]),
                "peak_memory_bytes": runtime.peak_memory(device),
            }
            with keeper.saving_if_this_fails():
                checkpoint.save_model(config.out, model, config, metrics)
    reporter.finish(metrics | {"checkpoint": config.out, "environment": card})


if __name__ == "__main__":
    runtime.run(main, "train.py")
