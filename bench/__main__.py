"""What this machine makes of it: images per second, where they go, and what to change.

    python -m bench                              # all parts: see --only
    python -m bench --only data,ladder --quick   # some of them, with fewer and shorter measurements
    python -m bench sweep                        # images/s and memory over the batch size and torch.compile's modes
    python -m bench scaling                      # images/s and efficiency over the number of processes
    python -m bench compare A.json B.json        # two results: which differences exceed the noise
    python -m bench compare-answers A.pt B.pt    # two models: is one better, or is it chance?
    python -m bench accuracy cpu --seeds 3       # what a recipe reaches: mean and deviation over seeds
    python -m bench ablate cpu --seeds 3         # what each ingredient of it is worth, on held-out images
    python -m bench curve cpu                    # what it reaches in 1, 2, 5 and 10 minutes here, on held-out images
    python -m bench profile                      # a trace of real training steps for TensorBoard

Each takes --help, and every flag of train.py that makes sense for it. What measures speed takes real CIFAR-10 and the
network of the `full` preset at 32 px unless flags say otherwise. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("-m bench")
preflight.require_dali()

from collections.abc import Callable, Sequence

from bench.recipe import ablate, accuracy, compare_answers, curve
from bench.speed import compare, profile, scaling, suite, sweep
from engine.config import PRESETS
from ground.entry import execute
from ground.mistake import Mistake

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    module.__name__.split(".")[-1].replace("_", "-"): module.main
    for module in (sweep, scaling, accuracy, ablate, curve, compare, compare_answers, profile)
}


def main(arguments: Sequence[str]) -> None:
    first = arguments[0] if arguments else ""
    if first != "compare":
        # Exits where a driver is too old for a GPU that the flags do not do without.
        preflight.check_driver("cpu" if "--device cpu" in " ".join(arguments).replace("=", " ") else "auto")
    if first in COMMANDS:
        return COMMANDS[first](arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    elif first and not first.startswith("-") and first not in PRESETS:
        known = ", ".join([*COMMANDS, *PRESETS])
        raise Mistake(f"{first!r} is no command and no preset, which are {known}; parts go by --only")
    suite.main(arguments)


if __name__ == "__main__":
    execute(main, "bench")
