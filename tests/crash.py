"""Kills small trainings at random moments, resumes them until they are done, and compares what they leave.

    make crash-test
    python tests/crash.py --kills 30 --terms 12 --seed 1
    python tests/crash.py --own-pictures        # on a folder, which each run decodes first
    python tests/crash.py --own-pictures --size 96          # or packs, as training decodes

Each run is started by one and the same command, with --resume auto, in a process of its own. SIGKILLs come at a random
moment of the whole run, every third one when the temporary file of a save appears; SIGTERMs come at random moments too.
However often it was stopped, a run must leave the very model, metrics, log and TensorBoard points of one that was not,
and SIGTERM may cost no step. Processes are forked from this one, which has done the imports (6 s) but no computing.
The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # so that no thread is there to be lost in a fork
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import train
from engine import checkpoint
from engine.learner import Learner
from ground.entry import execute
from pipeline.synthetic import generated
from run import resume

EPOCHS, STEPS = 3, 8
COMMAND = f"""smoke --epochs {EPOCHS} --batch-size 16 --resolutions 16 --device cpu --precision fp32 --threads 1
    --muon-lr 0.1 --resume auto --data generated:{STEPS * 16}/64""".split()
MEASURED = ("test_loss", "test_correct", "test_total", "test_accuracy", "test_accuracy_tta")
LIMIT = 120.0  # seconds until a run that hangs is given up


@dataclass
class Run:
    """One training in a folder of its own, and what befell it."""

    folder: Path
    every: float
    moments: list[str] = field(default_factory=list)

    def start(self) -> int:
        """The id of a new process that trains."""
        if pid := os.fork():
            return pid
        output, steps = (
            os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("output", "steps")
        )
        os.dup2(output, 1)
        os.dup2(output, 2)
        train_step = Learner.train_step

        def counted(*arguments: torch.Tensor) -> None:
            train_step(*arguments)  # type: ignore[arg-type]
            os.write(steps, b".")

        Learner.train_step = counted  # type: ignore[method-assign,assignment]
        resume.SHARE = 1.0  # saves as often as told to, not 1% of the time
        here = str(self.folder)
        os.environ["CIFAR10_DIR"] = f"{here}-cache"
        sys.argv = ["train.py", *COMMAND, "--run-dir", here, "--out", f"{here}/model.pt"]
        sys.argv += ["--checkpoint-every", str(self.every)]
        code = 1
        try:
            execute(train.main, "train.py")
        except SystemExit as end:
            code = int(str(end.code))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def fail(self, why: str) -> NoReturn:
        raise SystemExit(f"{self.folder}: {why}\n{(self.folder / 'output').read_text()}")

    def count(self) -> int:
        """Steps that were computed, in all its processes."""
        path = self.folder / "steps"
        return path.stat().st_size if path.exists() else 0

    def saving(self) -> bool:
        return any(self.folder.glob(".resume-*"))

    def note(self, what: str, after: float) -> None:
        names = [path.stem.removeprefix("resume-").lstrip("0") or "0" for path in resume.states(self.folder)]
        rows = (self.folder / "log.jsonl").read_text().count("\n") if (self.folder / "log.jsonl").exists() else 0
        text = f"{what} after {after:.2f} s: {self.count()} steps computed, {rows} rows, states {names or 'none'}"
        self.moments.append(text + (", a save cut short" if self.saving() else ""))

    def finish(self) -> None:
        if code := self.ended(self.start()):
            self.fail(f"exit code {code}")

    def ended(self, pid: int) -> int:
        """Its exit code, negative for a signal, once it has ended."""
        limit = time.monotonic() + LIMIT
        while (code := poll(pid)) is None:
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGKILL)
                self.fail("no end")
            time.sleep(0.002)
        return code

    def result(self) -> dict[str, object]:
        """All that must be the same however often it was stopped."""
        loaded = checkpoint.load(self.folder / "model.pt")
        rows = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        events = EventAccumulator(str(self.folder))
        events.Reload()
        return {
            "weights": checkpoint.digest(dict(loaded.model.state_dict())),
            "metrics": [loaded.metrics[key] for key in MEASURED],
            "log": [{k: v for k, v in row.items() if "seconds" not in k and "per_s" not in k} for row in rows],
            "TensorBoard": [(event.step, event.value) for event in events.Scalars("loss/training")],
        }


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def killed(run: Run, seconds: float, at_save: bool, rng: random.Random) -> None:
    """Start the run and SIGKILL it; try again where it was done before."""
    while True:
        start, moment = time.monotonic(), rng.uniform(0, seconds)
        pid, code = run.start(), None
        while code is None:
            after = time.monotonic() - start
            # From a random time on, at once, or at the first temporary file that appears.
            if after > LIMIT or (after > moment and (not at_save or run.saving())):
                os.kill(pid, signal.SIGKILL)
                run.ended(pid)
                return run.note("SIGKILL at a save" if at_save else "SIGKILL", after)
            code = poll(pid)
        if code:
            run.fail(f"exit code {code}")
        seconds /= 2
        for path in run.folder.iterdir():
            path.unlink()


def terminated(run: Run, seconds: float, rng: random.Random) -> bool:
    """Start the run and SIGTERM it; whether it was in the training, and not done or starting still."""
    start = time.monotonic()
    pid = run.start()
    time.sleep(rng.uniform(0, seconds))
    os.kill(pid, signal.SIGTERM)
    code = run.ended(pid)
    run.note(f"SIGTERM, exit code {code},", time.monotonic() - start)
    if code not in (0, 143, -signal.SIGTERM):
        run.fail(f"exit code {code}")
    if code != 143:
        return False
    if f"--resume {run.folder}" not in (run.folder / "output").read_text():
        run.fail("it does not say how to go on")
    if (step := resume.find(str(run.folder), "").learner["step"]) != run.count():
        run.fail(f"{run.count()} steps computed, the state has {step}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and resume small trainings.")
    parser.add_argument("--kills", type=int, default=30, help="runs that are killed")
    parser.add_argument("--terms", type=int, default=12, help="runs that are told to stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own-pictures", action="store_true", help="train on a folder of pictures")
    parser.add_argument("--size", default="0", help="their side in pixels; 96 and more: packed")
    options = parser.parse_args()
    rng, began = random.Random(options.seed), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="crash-"))
    if options.own_pictures:
        COMMAND[-1:] = [str(root / "pictures"), "--size", options.size]
        draw(root / "pictures")

    def fresh(name: str) -> Run:
        (root / name).mkdir()
        return Run(root / name, every=rng.choice([0.0, 0.0, 0.1, 3600.0]))

    whole = fresh("whole")
    start = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - start
    expected = whole.result()
    threads = len(os.listdir("/proc/self/task"))
    print(f"undisturbed: {seconds:.2f} s, {whole.count()} steps; {threads} thread before a fork", flush=True)
    done = {"kills": 0, "at_saves": 0, "saves_cut_short": 0, "terms": 0, "equal": 0}
    for number in range(options.kills + options.terms):
        run = fresh(f"run{number}")
        if number < options.kills:
            at_save = number % 3 == 0
            run.every = 0.0 if at_save else run.every
            for _ in range((2, 1, 3)[number % 3]):
                killed(run, seconds, at_save, rng)
                done["kills"] += 1
                done["at_saves"] += at_save
            done["saves_cut_short"] += sum("cut short" in moment for moment in run.moments)
        else:
            for _ in range(20):
                if terminated(run, seconds, rng):
                    break
                shutil.rmtree(run.folder)
                run.folder.mkdir()
            done["terms"] += 1
        run.finish()
        if number >= options.kills and run.count() != EPOCHS * STEPS:
            run.fail(f"{run.count()} steps computed, {EPOCHS * STEPS} were enough")
        for moment in run.moments:
            print(f"run {number}: {moment}", flush=True)
        found = run.result()
        if wrong := [key for key in expected if found[key] != expected[key]]:
            run.fail(f"other {', '.join(wrong)} than the run that nothing stopped")
        done["equal"] += 1
        shutil.rmtree(run.folder)
        shutil.rmtree(f"{run.folder}-cache", ignore_errors=True)
    shutil.rmtree(root)
    print(json.dumps(done | {"seconds": round(time.monotonic() - began, 1)}))


def draw(folder: Path) -> None:
    """As many pictures as the generated data set has, large ones, so that decoding takes a while."""
    for part, count in (("train", STEPS * 16), ("test", 64)):
        split = generated(count)
        for i, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = folder / part / f"{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((800, 800)).save(path)


if __name__ == "__main__":
    main()
