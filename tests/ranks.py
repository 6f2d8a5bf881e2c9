"""What one rank does in the tests of several processes: python tests/ranks.py learn|sync|train FOLDER

`learn` and `sync` import engine alone, which is a third of what train.py costs; `train` is for torchrun with a restart.
"""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from engine import distributed, known, temperature
from engine.config import PRESETS
from engine.distributed import ALONE
from engine.learner import Learner
from engine.machine import Machine
from engine.model import ResNet
from engine.warm_up import warm_up
from ground.mistake import Mistake
from pipeline.plan import Plan
from pipeline.synthetic import generated
from run import resume

CPU = torch.device("cpu")
STEPS, EPOCHS, BATCH = 5, 4, 33
CONFIG = replace(PRESETS["smoke"], epochs=EPOCHS, resolutions=(16,), batch_size=BATCH)
SPLIT = generated(STEPS * BATCH)

# Eight steps in two epochs; 22 and 21 images for two ranks, none of them a multiple of DALI's chunks.
TRAINED = ["smoke", "--epochs", "2", "--resolutions", "16", "--batch-size", "43", "--device", "cpu"]
TRAINED += ["--precision", "fp32", "--threads", "1", "--checkpoint-every", "0", "--data", "generated:173/1100"]


def shares(world, device=CPU):
    """Images and labels of each of the 20 steps."""
    plan = Plan(side=32, count=len(SPLIT), batch_size=BATCH, flip="random", rank=world.rank, world=world.size)
    for step in range(STEPS * EPOCHS):
        draws = plan.draws(*divmod(step, STEPS))
        images = torch.from_numpy(SPLIT.images[draws.indices][:, ::2, ::2].copy()).permute(0, 3, 1, 2)
        yield images.to(device), torch.from_numpy(SPLIT.labels[draws.indices].astype("int64")).to(device)


def learner(world=ALONE, config=CONFIG, device=CPU, dtype=torch.float32):
    """Ranks begin with other weights each: rank 0's must win."""
    torch.set_num_threads(1)
    torch.manual_seed(world.rank)
    model = ResNet("abcdefghij", width=8, resolution=16).to(device, dtype).to(memory_format=torch.channels_last)
    return Learner(model, config, STEPS, Machine(device, world=world))


def batches(world):
    """This rank's of four batches to evaluate on, 33 images in all."""
    images, labels = next(shares(ALONE))
    whole = list(zip(images.split(10), labels.split(10), strict=True))
    return whole[world.rank :: world.size]


def learn(folder, world):
    temperature.FEWEST = known.FEWEST = 33
    own = learner(world)
    warm_up(own, 17 - world.rank)
    own.model.train()
    for images, labels in shares(world):
        own.train_step(images, labels)
    result = {
        "learner": own.state_dict(),
        "evaluation": vars(own.evaluate(batches(world))),
        "evaluated": {name: tensor.clone() for name, tensor in own.model.state_dict().items()},
        "temperature": temperature.fit_temperature(own.model.eval(), batches(world), own.machine),
        "known": vars(known.fit_known(own.model, batches(world), batches(world), 0.5, own.machine)),
        "largest": world.largest(float(world.rank)),
        "from_first": world.from_first(lambda: {"rank": world.rank, "path": Path("x")}),
        "threads": world.threads(0),
    }
    torch.save(result, Path(folder) / f"{world.rank}.pt")


def sync(folder, world):
    device = torch.device("cuda", torch.cuda.current_device())
    own = learner(world, replace(CONFIG, sync_batch_norm=True), device, torch.float64)
    own.model.train()
    for images, labels in shares(world, device):
        own.train_step(images, labels)
    if world.first:
        torch.save(own.model.state_dict(), Path(folder) / "weights.pt")


def train(folder, world):
    """A whole run; then one whose rank 1 is killed at step 6 and restarted; then one whose rank 1 raises."""
    import train as entry

    resume.SHARE = 1e9
    real_step = Learner.train_step

    def run(name, at_step):
        def step(own, *batch):
            assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
            at_step(own.step)
            real_step(own, *batch)

        Learner.train_step = step  # type: ignore[method-assign]
        entry.main([*TRAINED, "--run-dir", f"{folder}/{name}", "--out", f"{folder}/{name}.pt"], world)

    def die(step):
        if step == 5 and not world.restarted:
            if world.first:
                shutil.copy(f"{folder}/killed/resume-00000005.pt", f"{folder}/of_two.pt")
            else:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)

    def fail(step):
        if step == 2 and not world.first:
            Path(folder, "failed_at").write_text(json.dumps(time.time()))
            raise Mistake("there is a hole in the bucket")

    if not world.restarted:
        run("whole", lambda step: None)
    run("killed", die)
    run("failed", fail)


def unlike(folder, world):
    """A run whose last rank has other flags, or another version, than the rest."""
    import train as entry

    flags = os.environ["FLAGS"].split() if world.rank == world.size - 1 else []
    if flags and not flags[0].startswith("-"):
        card, package = Machine.card, flags.pop()
        Machine.card = lambda self: card(self) | {package: "0.1"}  # type: ignore[method-assign]
    entry.main([*TRAINED, *flags, "--run-dir", f"{folder}/run", "--out", f"{folder}/model.pt"], world)


if __name__ == "__main__":
    task = {"learn": learn, "sync": sync, "train": train, "unlike": unlike}[sys.argv.pop(1)]
    distributed.execute(lambda arguments, world: task(arguments[0], world), "train.py")
