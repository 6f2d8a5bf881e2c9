"""Which pictures are for training, validation and testing, so that the report is honest.

Without parts, 8 of 10 pictures of each class are for training, 1 for validation and 1 for testing. Which ones, the
SHA-256 of each file decides: the same pictures always come out alike, and copies of one picture stay together.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipeline.labels import PARTS
from pipeline.listing import Source

SHARE = 10  # of a class without parts, one picture in so many is for validation and as many for testing


def decide_parts(files: Sequence[Source], digests: Sequence[str]) -> tuple[list[str], list[str]]:
    """The part of each file, and why it is left out ("" for most), by its SHA-256.

    Left out is what would make the report dishonest: a picture that stands in two classes, and one to train on or for
    validation that is also in a part after its own.
    """
    order = ["", *PARTS]
    labels: dict[str, set[int]] = defaultdict(set)
    last: dict[str, int] = defaultdict(int)  # of the parts that a picture is in
    for file, digest in zip(files, digests, strict=True):
        labels[digest].add(file.label)
        last[digest] = max(last[digest], order.index(file.part))
    class_digests: dict[int, set[str]] = defaultdict(set)
    reasons = [""] * len(files)
    for i, (file, digest) in enumerate(zip(files, digests, strict=True)):
        if len(labels[digest]) > 1:
            reasons[i] = "the same picture is in two classes"
        elif order.index(file.part) < last[digest]:
            reasons[i] = f"the same picture is among those for {order[last[digest]]}"
        elif not file.part:
            class_digests[file.label].add(digest)
    part_by_digest = {digest: part for every in class_digests.values() for digest, part in _draw(sorted(every))}
    parts = [file.part or part_by_digest.get(digest, "") for file, digest in zip(files, digests, strict=True)]
    return parts, reasons


def _draw(digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A tenth of a class for testing and a tenth for validation, one picture each at least if there are three."""
    count = len(digests)
    some = max(1, round(count / SHARE))
    test, validation = some if count > 1 else 0, some if count > 2 else 0
    for i, digest in enumerate(digests):
        yield digest, "test" if i < test else "validation" if i < test + validation else "train"
