"""Find the training images whose label looks wrong.

    python audit.py --data holiday                 # pictures of your own
    python audit.py cpu --folds 5 --out suspects   # CIFAR-10; every other word goes to train.py

Trains one model a fold, each on all training images but that fold's, and lets it judge these: so no image is judged by
a model that has learnt its label. Where the two differ the label may be wrong, most likely so where the loss is
largest. Disputed are those where the model is as sure of its own answer as it is on average of images of that class.

Writes labels.html, errors.csv and heatmaps.npz into the folder `--out`, beside the folds' models and run folders. Run
again, it goes on where it stopped; folds of seconds are trained again. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("audit.py")

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ground.entry import execute
from ground.mistake import Mistake
from ground.terminal import print_result

if TYPE_CHECKING:  # --help loads nothing heavy
    from pipeline.dataset import DataSet

SHOWN = 10
PAGE = "labels.html"
DECIDED = {"fold", "validate", "run_dir", "resume"}  # settings of train.py that the audit makes itself
# Becomes the program that its words name, which gets SIGTERM when the process that started it ends, however it ends.
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def main(arguments: Sequence[str]) -> None:
    from engine.config import given_flags, parse
    from explain import outputs
    from ground.files import check_apart
    from pipeline.dataset import open_dataset

    parser = argparse.ArgumentParser(
        prog="audit.py",
        allow_abbrev=False,
        description=(__doc__ or "").split("\n\n")[0],
        epilog="All other words are those of train.py, for each fold: a preset, --data, --minutes ...",
    )
    parser.add_argument("--folds", type=int, default=4, help="models to train, 2 to 99 (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("label-audit"), help="folder (default: label-audit)")
    options, recipe = parser.parse_known_args(arguments)
    if not 2 <= options.folds <= 99:
        raise Mistake(f"--folds is {options.folds}: it must be 2 to 99")
    given = sorted(DECIDED & given_flags(recipe))
    if given:
        flag = given[0].replace("_", "-")
        raise Mistake(f"--{flag}: leave it out; an audit trains on folds of its own, into --out")
    config = parse(recipe, "cpu")[1]
    data = [config.data] if config.own_pictures else []
    check_apart(options.out, "--out", data)
    options.out.mkdir(parents=True, exist_ok=True)
    outputs.check(str(options.out / PAGE), True, data)
    models = [train(recipe, options.out, f"{k}/{options.folds}") for k in range(1, options.folds + 1)]
    result = judge(models, options.out, open_dataset(config.data, config.size, config.fit, config.layout))
    print_result(lines(result), result)


def train(recipe: Sequence[str], out: Path, fold: str) -> Path:
    """The checkpoint of a fold, trained by a process of its own; this one ends with its exit code where it fails."""
    name = f"fold-{fold.replace('/', '-of-')}"
    model = out / f"{name}.pt"
    goes_on = (out / name).exists()
    print(f"fold {fold}", flush=True)
    decided = ["--fold", fold, "--run-dir", str(out / name), "--out", str(model), "--resume", "auto"]
    command = [str(preflight.ROOT / "train.py"), *recipe, *decided]
    process = subprocess.Popen([sys.executable, "-I", "-c", LAUNCHER, str(os.getpid()), *command])
    # What a terminal sends, the training has too: it saves its state and ends.
    handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGHUP), signal.SIG_IGN)
    handlers[signal.SIGTERM] = lambda *_: process.terminate()
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    code = process.wait()
    code = 128 - code if code < 0 else code
    for signum, handler in before.items():
        signal.signal(signum, handler)
    if code == 2 and goes_on:
        print(f"audit.py: {out} holds an audit; if of other settings or data, name another --out", file=sys.stderr)
    if code > 128:  # by a signal, and saved: train.py has said how to go on with this fold alone
        print(f"audit.py: stopped in fold {fold}; to go on, run audit.py again as before", file=sys.stderr)
    if code:
        sys.exit(code)
    return model


def judge(models: Sequence[Path], out: Path, data: "DataSet") -> dict[str, Any]:
    """Models of all folds of the data -> cases -> maps -> files; returns what there is to report."""
    from engine import checkpoint
    from explain import outputs, page, study
    from explain.explainer import Explainer
    from explain.options import GradcamOptions

    checkpoints = [checkpoint.load(model) for model in models]
    errors = study.of_folds(checkpoints, data)
    cases = errors.cases
    explainer = Explainer.of(checkpoints[0], "cpu")  # layer4's maps are there already
    maps = explainer.explain(cases, "layer4", "gradcam", "pred", several=True)
    source = f"{len(models)} folds, each by a {explainer}"
    content = page.render(errors, maps, None, GradcamOptions(out=PAGE), source)
    files = outputs.write(str(out / PAGE), content, maps)
    worst = [
        {
            "image": cases.title(i),
            "label": cases.classes[cases.rival[i]],
            "predicted": cases.classes[cases.predicted[i]],
            "probability": float(cases.probability(cases.predicted)[i]),
        }
        for i in cases.select()[:SHOWN]
    ]
    return errors.plain() | {"disputed": int(cases.disputed.sum()), "worst": worst, "files": files}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person is told at the end."""
    text = "{errors:,} of {total:,} {split} images are judged otherwise than labelled ({accuracy:.2%} right), "
    yield (text + "{disputed:,} of these labels are disputed").format_map(result)
    for image in result["worst"]:
        yield "{image}: labelled {label}, looks like {predicted} ({probability:.1%})".format_map(image)
    yield "wrote {} (look at these first), {} and {}".format(*result["files"])


if __name__ == "__main__":
    execute(main, "audit.py")
