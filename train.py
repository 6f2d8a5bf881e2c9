"""Train ResNet-18 on CIFAR-10.

    python train.py                       # preset `full` on a CUDA GPU, `cpu` without one
    python train.py cpu --epochs 8        # a preset, then any setting as a flag (--help lists them)
    python train.py --resume runs/mine    # go on where a run stopped

Writes model.pt (`--out`) and, in the run folder, the log, TensorBoard scalars, curves.png and the resume state. The
last line on stdout is JSON.
"""

import preflight

preflight.require_environment("train.py")
preflight.require_dali()

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch

from bench.estimate import train_seconds
from engine import checkpoint, resume, runtime
from engine.config import PRESETS, default_preset, parse
from engine.learner import Learner, NonFiniteLoss, evaluate, learning_rates
from engine.model import MEAN, create
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.splits import training_splits
from report.progress import Reporter, stdout_console, throughput
from report.run_folder import RunFolder
from report.summary import model_summary


def main(arguments: Sequence[str]) -> None:
    state = resume.named(arguments)
    preset, config = parse(arguments, state["config"] if state else default_preset(torch.cuda.is_available()))
    preflight.check_driver(config.device)
    device = runtime.pick_device(config.device)
    precision = runtime.pick_precision(device, config.precision)
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    threads = runtime.configure(device, config.threads)
    checkpoint.check_writable(config.out)
    seconds = {"data": 0.0, "compile": 0.0, "train": 0.0, "eval": 0.0} | state.get("seconds", {})

    start = perf_counter()
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
    seconds["data"] += perf_counter() - start

    model = create(config, train.images).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, plan.steps_per_epoch, device, precision, compiled)
    if state:
        resume.restore(learner, state, config, data)
    done = learner.step // plan.steps_per_epoch
    folder = RunFolder(config.run_dir, done, learning_rates(config, learner.total_steps))
    config = replace(config, run_dir=str(folder.path), resume="")
    folder.write_config(checkpoint.config_dict(config))

    card = runtime.environment_card(device)
    reporter = Reporter(stdout_console())
    reporter.say(model_summary(model, config.resolutions[-1]))
    reporter.choice(
        preset=preset,
        config=config,
        device=", ".join(f"{name} {value}" for name, value in card.items()),
        precision=precision,
        compiled=compiled,
        seconds=train_seconds(config, plan.count, device, precision),
        full_seconds=train_seconds(PRESETS["full"], plan.count, device, precision, batch_size=16),
        run_folder=str(folder.path),
    )
    if compiled:
        seconds["compile"] += learner.warm_up(plan.batch_size)

    saved = state.get("path", "none yet")
    with folder:
        for epoch in range(done, config.epochs):
            start = perf_counter()
            with reporter.epoch(epoch + 1, config.epochs, len(loader), plan.batch_size) as bar:
                try:
                    progress = learner.train_epoch(loader.epoch(epoch), partial(bar.advance, learner.peek))
                except NonFiniteLoss as error:
                    raise ValueError(f"{error}: try a smaller --max-lr; last good resume state: {saved}") from None
            took = perf_counter() - start
            start = perf_counter()
            result = evaluate(model, test, device, precision)
            seconds["train"] += took
            seconds["eval"] += perf_counter() - start
            folder.add(
                {
                    "epoch": epoch + 1,
                    "epochs": config.epochs,
                    "step": learner.step,
                    "steps": learner.total_steps,
                    "resolution": config.resolution(epoch),
                    "lr": learner.lr,
                    "train_seconds": took,
                    "eval_seconds": perf_counter() - start,
                    "it_per_s": len(loader) / took,
                    "images_per_s": progress.images / took,
                    "split": held_out.name,
                }
                | progress.row()
                | result.row()
            )
            reporter.row(folder.rows[-1])
            resume.save(folder.resume_path, learner, config, data, seconds, card)
            saved = str(folder.resume_path)

    start = perf_counter()
    plain, flipped = (evaluate(model, test, device, precision, flip) for flip in (False, True))
    seconds["eval"] += perf_counter() - start
    metrics = {
        **plain.row(),
        "test_accuracy_tta": flipped.accuracy,
        "split": held_out.name,
        "precision": precision,
        **{f"{name}_seconds": value or None for name, value in seconds.items()},
        **throughput([row["images_per_s"] for row in folder.rows]),
        "peak_memory_bytes": runtime.peak_memory(device),
    }
    checkpoint.save_model(config.out, model, config, metrics)
    reporter.finish(metrics | {"checkpoint": config.out, "environment": card})


if __name__ == "__main__":
    runtime.run(main, "train.py")
