"""The interval of a share of which a sample is known."""

from statistics import NormalDist
from typing import Any

DEVIATIONS = NormalDist().inv_cdf(0.975)  # 95 of 100 cases lie between these, about the mean


def wilson(hits: Any, count: Any) -> tuple[Any, Any]:
    """The shares between which the true one lies in 95 of 100 cases, where `hits` of `count` were
    seen: numbers, or arrays of one shape (E. B. Wilson 1927, JASA 22)."""
    z, share = DEVIATIONS, hits / count
    middle = share + z * z / (2 * count)
    spread = z * (share * (1 - share) / count + (z / count / 2) ** 2) ** 0.5
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)
