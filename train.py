"""Train ResNet-18 on CIFAR-10 or on pictures of one's own.

    python train.py                       # preset `full` on a CUDA GPU, `cpu` without one
    python train.py cpu --epochs 8        # a preset, then any setting as a flag (--help lists them)
    python train.py --resume runs/mine    # go on where a run stopped, to the same weights
    python train.py cpu --resume auto     # go on if there is something to go on with, else start
    python train.py --data holiday --pretrained cifar10.pt      # pictures of one's own, from what a model has learnt
    python train.py --data holiday --pretrained imagenet        # or from torchvision's weights
    torchrun --standalone --nproc-per-node=4 train.py full      # four GPUs

Writes model.pt (`--out`) and a run folder (run/folder.py). The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("train.py")
preflight.require_dali()

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from engine import distributed
from engine.checkpoint import Checkpoint
from engine.config import DECIDING, Config, default_preset, given_flags, parse
from engine.distributed import ALONE, World
from engine.known import sample
from engine.learner import Learner
from engine.machine import Machine
from engine.model import create
from ground.files import check_apart, check_output
from pipeline.dali import DaliLoader, EvaluationLoader, evaluation_loader
from pipeline.dataset import open_dataset, require_known
from pipeline.plan import Plan
from pipeline.split import Split
from run import resume
from run.budget import decide
from run.frozen import fit_head
from run.pretrained import require_unseen, start_from, take_shape
from run.resume import State
from run.run import RunData, open_run
from run.stopwatch import Stopwatch


def main(arguments: Sequence[str], world: World = ALONE) -> None:
    preset, config, state, learnt = settings(arguments, world)
    machine = Machine.of(config, world)
    clock = Stopwatch(state.seconds)

    with clock.on("data"):
        data = open_dataset(config.data, config.size, config.fit, config.layout)
        train, reported = data.splits(config.validate, config.fold)
        world.require_agreement(partial(agreement, config, machine, train, reported))
        if learnt:
            require_unseen(config, learnt, reported)
        config = decide(config, given_flags(arguments), state, train, len(reported), machine, clock["data"])
        plan = Plan.of(train, rank=world.rank, world=world.size, **config.drawn())
        loader = DaliLoader(train, plan, machine.device, machine.threads, config.resolution)

    def in_order(split: Split) -> EvaluationLoader:
        """All images of a split once an epoch, to evaluate on; each rank its share."""
        own = {"rank": world.rank, "world": world.size}
        return evaluation_loader(split, config.reported_side, machine.device, machine.threads, **own)

    test = in_order(reported)
    unseen = data.validation() or (reported if config.validate or config.fold else None)
    model = create(config, train).to(machine.device).to(memory_format=torch.channels_last)
    if learnt:
        start_from(model, learnt)
        if config.head_first:
            with clock.on("head"):
                fit_head(model, in_order(train), machine, config.label_smoothing)
    learner = Learner(model, config, len(loader), machine)
    digest = hashlib.sha256(f"{train.digest} {reported.digest}".encode()).hexdigest()
    if state.path:
        resume.restore(learner, state, config, digest, train.digest)

    run_data = RunData(digest, data.identity(), train.contents, reported, test.plan.rows())
    with open_run(state, learner, loader, run_data, clock) as run:
        run.begin(preset)
        if config.head_first:
            run.keep_frozen(test, in_order(unseen) if unseen else None)
        for epoch in range(run.epochs_done, config.epochs):
            with run.training(epoch):  # timed; its bar
                for images, labels in run.batches(epoch):  # what is left of the epoch
                    learner.train_step(images, labels)
                    run.after_step()  # the bar moves, a stop signal is heard, a state is saved when it is due
                progress = learner.end_epoch()  # waits for the device
            run.end_epoch(epoch, progress, run.evaluate(test.epoch(epoch)))
        if config.head_first:
            run.keep_better(in_order(unseen) if unseen else None)
        temperature = run.temperature(in_order(unseen).epoch(config.epochs) if unseen else [])
        known = None
        if unseen:
            some = in_order(train.take(sample(len(train), train.side), "training"))
            known = run.known(some.epoch(config.epochs), in_order(unseen).epoch(config.epochs), temperature)
        flipped = run.evaluate(test.epoch(config.epochs), flip=True, temperature=temperature)
        run.end(flipped, temperature, known)


def agreement(config: Config, machine: Machine, train: Split, reported: Split) -> dict[str, object]:
    """What must be the same in all ranks, under names for a person."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in config.values(*DECIDING).items()}
    images = {"training images": train.digest[:16], f"{reported.name} images": reported.digest[:16]}
    versions = {name: machine.card()[name] for name in ("python", "torch", "dali")}
    return flags | images | versions | {"precision": machine.precision, "compiled": machine.compiled}


def settings(arguments: Sequence[str], world: World) -> tuple[str, Config, State, Checkpoint | None]:
    """The preset's name, the config, the state that `--resume` names, and the checkpoint of `--pretrained`."""
    preset, config = parse(arguments, default_preset(torch.cuda.is_available()))
    state = world.from_first(lambda: resume.find(config.resume, config.run_dir, world.restarted))
    given = given_flags(arguments)
    if state.path:
        preset, config = parse(arguments, preset, state.config)
        if "data" not in given:
            require_known(config.data, str(state.path))
    config, learnt = take_shape(config, given, state, world) if config.pretrained else (config, None)
    preflight.check_driver(config.device)
    if world.first:
        pictures = [config.data] * config.own_pictures
        check_output(config.out, inputs=[config.pretrained, *pictures])
        check_apart(config.run_dir or "runs", "--run-dir", pictures)
    return preset, replace(config, resume=""), state, learnt


if __name__ == "__main__":
    distributed.execute(main, "train.py")
