"""The OneCycle learning rate of every step (Smith and Topin 2017, arXiv 1708.07120): up to a peak, then down."""

from engine.config import Config

FINAL_DIV_FACTOR = 1e4  # the last step's learning rate is the first step's divided by this


def one_cycle(config: Config, peak: float, step: int, steps: int) -> float:
    """The learning rate of `step`, counted from 0, in a run of `steps`: a straight line up to `peak` and one down.

    To the last bit that of torch.optim.lr_scheduler.OneCycleLR with anneal_strategy="linear".
    """
    first = peak / config.div_factor
    last = first / FINAL_DIV_FACTOR
    top = config.pct_start * steps - 1  # the step of the peak, not always a whole number
    if step <= top and top > 0:
        return (peak - first) * (step / top) + first
    return (last - peak) * ((step - top) / (steps - 1 - top)) + peak
