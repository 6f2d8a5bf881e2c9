"""Which pictures are for training, validation and testing, so that the report is honest.

Without parts, 8 of 10 pictures of each class are for training, 1 for validation and 1 for testing. Which ones, the
SHA-256 of each file decides: the same pictures always come out alike, and copies of one picture stay together.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipeline.find import PART_NAMES, Source

SHARE = 10  # of a class without parts, one picture in so many is for validation and as many for testing


def decide_parts(files: Sequence[Source], digests: Sequence[str], reasons: list[str]) -> list[str]:
    """The part of each file, by its SHA-256 ("" where it could not be read).

    Leaves out, by a reason, what would make the report dishonest: a picture that stands in two classes, and one to
    train on or for validation that is also in a part after its own.
    """
    parts = [file.part for file in files]
    labels: dict[str, set[int]] = defaultdict(set)
    order = ["", *PART_NAMES]
    last: dict[str, int] = defaultdict(int)  # of the parts that a picture is in
    for file, digest in zip(files, digests, strict=True):
        if digest:
            labels[digest].add(file.label)
            last[digest] = max(last[digest], order.index(file.part))
    class_digests: dict[int, set[str]] = defaultdict(set)
    for i, (file, digest) in enumerate(zip(files, digests, strict=True)):
        if not digest:
            continue
        if len(labels[digest]) > 1:
            reasons[i] = "the same picture is in two classes"
        elif order.index(file.part) < last[digest]:
            reasons[i] = f"the same picture is among those for {order[last[digest]]}"
        else:
            class_digests[file.label].add(digest)
    if "" in parts:
        drawn = {digest: part for every in class_digests.values() for digest, part in _draw(sorted(every))}
        parts = [drawn.get(digest, "") for digest in digests]
    return parts


def _draw(digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A tenth of a class for testing and a tenth for validation, one picture each at least if there are three."""
    count = len(digests)
    some = max(1, round(count / SHARE))
    test, validation = some if count > 1 else 0, some if count > 2 else 0
    for i, digest in enumerate(digests):
        yield digest, "test" if i < test else "validation" if i < test + validation else "train"
