"""Pictures and a plan become batches on the device: a DALI graph for a CPU and for a GPU.

Of packed pictures each is decoded in every epoch, no more of it than the region that the plan cuts out, and
resized. Of pixels the whole data set lives in the pipeline, each image padded by reflection and as it is turned. A
batch is a few tall chunks of images: one `multi_paste` a chunk gathers, crops and flips, since DALI's
per-sample crop and flip cost time quadratic in the batch. `python -m bench --only data` measures it.

    stored, CHUNKS pictures (rows * padded, padded, 3)     a chunk of the batch, (k * side, side, 3)
    +--------+  +--------+                                 +------+
    |image 0 |  |image r |   r rows of images, then their  |first |  windows of side x side at `crop` in an image,
    +--------+  +--------+   mirror images, and so on      +------+  pasted one below the other
    |image 1 |  | ...    |                                 |second|
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from torch import Tensor

from ground.mistake import Mistake
from pipeline.home import zeros
from pipeline.packed import PackedPictures, SquareLoader
from pipeline.plan import Draws, Plan
from pipeline.split import Split

LARGEST_PRESET = 48  # pixels
EVALUATION_PIXELS = 1000 * 32 * 32
LATE = 1 << 30  # an epoch after the last one
PADDED = 1000  # images at a time
CHUNKS = 8  # of a batch, for 2 to 16 threads (two cores of an AMD EPYC: 139k images/s, image by image 53k)


class DaliLoader:
    """Batches of a split, as the plan says; the squares of cutout are filled with its mean colour.

    `epoch(e, start)` yields, from iteration `start`, images (B, 3, R, R) uint8 channels_last (a view) and
    labels (B,) int64, on `device` and ready on its current stream; R is `resolution(e)`. Iterating the
    loader itself goes on with the epoch after the last one. Batches that were kept stay intact. With
    `pad_last` images labelled -1 fill up the last batch of an epoch, so that shapes never change.
    """

    def __init__(
        self,
        split: Split,
        plan: Plan,
        device: torch.device,
        threads: int,
        resolution: Callable[[int], int],
        pad_last: bool = False,
    ) -> None:
        if (plan.count, plan.side) != (len(split), split.side):
            given = f"the data set has {len(split)} of {split.side}"
            raise ValueError(f"the plan is for {plan.count} images of {plan.side} pixels, but {given}")
        self._images, self._packed = split.images, isinstance(split.images, PackedPictures)
        if device.type == "cuda" and plan.cutout and plan.share < CHUNKS:
            # Seen on an H200, DALI 2.4.0, batch 5: the first batch came out wrong. From 9 on all were right.
            raise Mistake(f"--batch-size is {plan.batch_size}: on a GPU each process needs {CHUNKS} images or more")
        self.plan, self.device, self.threads, self.resolution = plan, device, threads, resolution
        self.fill = tuple(map(float, split.mean_colour)) if plan.cutout else ()
        self.labels, self.pad_last = split.labels, pad_last
        if isinstance(split.images, np.ndarray):
            turns = 1 if plan.flip == "none" else 4 if plan.flip == "both" else 2
            self._stored = _tall_pictures(split.images, plan.translate, turns, device)
            self._rows = len(self._stored[0]) // (plan.side + 2 * plan.translate)
        self._pipe: Any = None
        self._side = 0
        self._next = (0, 0)
        self._held: deque[tuple[torch.cuda.Event, tuple[Tensor, Tensor]]] = deque()

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, iteration = self._next
        return self.epoch(epoch + (iteration > 0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        side = self.resolution(epoch)
        for iteration in range(start, len(self)):
            # The pipeline runs ahead along the plan. Another place or resolution needs a new one.
            if self._pipe is None or (epoch, iteration) != self._next or side != self._side:
                self._pipe, self._side = self._build(epoch, iteration, side), side
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            images, labels = self._pipe.run(stream)
            self._next = divmod(epoch * len(self) + iteration + 1, len(self))
            size = sum(shape[0] for shape in labels.shape())
            batch = (
                torch.from_dlpack(images.as_reshaped_tensor([size, side, side, 3])).permute(0, 3, 1, 2),
                torch.from_dlpack(labels.as_reshaped_tensor([size])),
            )
            yield batch
            if self.device.type == "cuda":
                self._hold(batch)

    def _hold(self, batch: tuple[Tensor, Tensor]) -> None:
        """Keep a batch until the GPU, some steps behind the host, has done what it was asked to do with it.

        When nothing holds a batch any more, DALI fills its memory anew on a stream of its own.
        """
        read = torch.cuda.Event()
        read.record(torch.cuda.current_stream(self.device))
        self._held.append((read, batch))
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def _build(self, epoch: int, iteration: int, side: int) -> Any:
        def feed() -> Iterator[list[list[np.ndarray]]]:
            for position in count(epoch * len(self) + iteration):
                yield inputs(*divmod(position, len(self)))

        cuda = self.device.type == "cuda"
        how = {"device_id": (self.device.index or 0) if cuda else None, "num_threads": self.threads}
        name = "gpu" if cuda else "cpu"
        if self._packed:
            inputs = self._regions
            pipe = _decoding_graph(feed(), name, side, self.fill, batch_size=self.plan.share, **how)
        else:
            inputs = self._chunks
            pipe = _graph(feed(), name, self.plan.side, side, self.fill, batch_size=CHUNKS, **how)
        pipe.build()
        if not pipe.exec_dynamic:
            raise RuntimeError("DALI's dynamic executor is off (DALI_USE_EXEC2=0?): kept batches would be overwritten")
        if not self._packed:
            pipe.feed_input("data", self._stored, layout="HWC")
        return pipe

    def _regions(self, epoch: int, iteration: int) -> list[list[np.ndarray]]:
        """The decoding graph's inputs in its order, each B arrays."""
        draws = self.plan.draws(epoch, iteration)
        side, jpeg = self.resolution(epoch), self._images.jpeg
        # Where cutout's square is, (B, 2) top and left and (B, 2) sides: from the stored side to that of the epoch.
        square = draws.cutout.astype(np.float32) * (side / self.plan.side)
        turns = draws.flip.astype(np.int32)
        return [
            [np.frombuffer(jpeg(row), np.uint8) for row in draws.indices.tolist()],
            *(list(array) for array in (draws.crop[:, :2], draws.crop[:, 2:], turns & 1, turns >> 1)),
            list(self.labels[draws.indices][:, None]),
            *(list(array) for array in (square[:, :2], square[:, 2:] - square[:, :2]) if self.plan.cutout),
        ]

    def _chunks(self, epoch: int, iteration: int) -> list[list[np.ndarray]]:
        """The graph's inputs in its order, each CHUNKS arrays."""
        draws, side = self.plan.draws(epoch, iteration), self.plan.side
        labels = self.labels[draws.indices]
        if self.pad_last:
            first = np.zeros(self.plan.batch_size - len(labels), np.int64)
            draws = Draws(*(np.concatenate([d, d[first]]) for d in vars(draws).values()))
            labels = np.concatenate([labels, first - 1])

        # Which images of the batch are in which chunk: of 11 images in 4 chunks  0 1 | 2 3 4 | 5 6 7 | 8 9 10. Where
        # there are fewer images than chunks, the first chunks are empty.
        chunks = min(CHUNKS, len(labels))
        bounds = [0] * (CHUNKS - chunks) + [len(labels) * i // chunks for i in range(chunks + 1)]
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        sizes = [part.stop - part.start for part in parts]

        # Where each image is: (B,) which tall picture, and (B, 2) top and left of its window there.
        tall, row = np.divmod(draws.indices + draws.flip * self.plan.count, self._rows)
        window = draws.crop[:, :2].copy()
        window[:, 0] += row * (side + 2 * self.plan.translate)

        # Where it goes: (B, 2) top and left in its chunk, and the same of cutout's square, with its sides.
        target = np.zeros_like(window)
        target[:, 0] = np.concatenate([np.arange(size) for size in sizes]) * side
        hole = (draws.cutout[:, :2] + target).astype(np.float32)
        hole_size = (draws.cutout[:, 2:] - draws.cutout[:, :2]).astype(np.float32)
        return [
            *([array[part] for part in parts] for array in (tall.astype(np.int32), window, target)),
            [np.full((size, 2), side, np.int32) for size in sizes],
            [np.array([size * side, side], np.int32) for size in sizes],
            [labels[part] for part in parts],
            *([array[part].reshape(-1) for part in parts] for array in (hole, hole_size) if self.plan.cutout),
        ]


@pipeline_def
def _decoding_graph(feed: Any, device: str, side: int, fill: Sequence[float]) -> Any:
    inputs = fn.external_source(source=feed, num_outputs=8 if fill else 6, batch=True)
    jpegs, corner, shape, mirrored, upside_down, labels, *hole = inputs
    images: Any = fn.decoders.image_slice(
        jpegs, corner, shape, axis_names="HW", normalized_anchor=False, normalized_shape=False,
        device="mixed" if device == "gpu" else "cpu",
    )  # fmt: skip
    images = fn.resize(images, size=[side, side], antialias=True)
    images = fn.flip(images, horizontal=mirrored, vertical=upside_down)
    if fill:
        images = fn.erase(images, anchor=hole[0], shape=hole[1], axis_names="HW", fill_value=fill)
    return images, labels.gpu() if device == "gpu" else labels


@pipeline_def
def _graph(feed: Any, device: str, stored: int, side: int, fill: Sequence[float]) -> Any:
    data = fn.external_source(name="data", device=device, layout="HWC", repeat_last=True, no_copy=True)
    inputs = fn.external_source(source=feed, num_outputs=8 if fill else 6, batch=True)
    chunk, source, target, window, size, labels, *hole = inputs
    images: Any = fn.multi_paste(
        data, in_ids=chunk, in_anchors=source, out_anchors=target, shapes=window, output_size=size
    )
    if fill:
        images = fn.erase(images, anchor=hole[0], shape=hole[1], axis_names="HW", fill_value=fill)
    if side != stored:  # image by image: resizing a whole chunk would bleed from one image into the next
        images = fn.reshape(images, shape=[-1, stored, stored, 3], layout="FHWC")
        images = fn.resize(images, size=[side, side])
    return images, labels.gpu() if device == "gpu" else labels


EvaluationLoader = DaliLoader | SquareLoader


def evaluation_loader(
    split: Split,
    resolution: int | Callable[[int], int],
    device: torch.device,
    threads: int,
    batch_size: int = 0,
    rank: int = 0,
    world: int = 1,
) -> EvaluationLoader:
    """All images of a split in order, unchanged but for their size: one, or one for each epoch.

    Images labelled -1, not to be counted, fill up the last batch. A `batch_size` of 0 stands for 1,000,
    which divides CIFAR-10's 10,000 and 5,000; for images larger than the presets make of those, for as
    many as have EVALUATION_PIXELS. Of several ranks each takes whole batches, the very ones that one process
    would see, or none: the logits of an image can depend, in the last bits, on the size of its batch.
    """
    side = resolution if callable(resolution) else lambda epoch: resolution
    largest = max(split.side, side(0), side(LATE))
    usual = 1000 if largest <= LARGEST_PRESET else max(1, EVALUATION_PIXELS // largest**2)
    sizes = {"count": len(split), "side": split.side, "batch_size": min(batch_size or usual, len(split))}
    plan = Plan(**sizes, shuffle=False, drop_last=False, rank=rank, world=world, whole=True)  # type: ignore[arg-type]
    if isinstance(split.images, PackedPictures):
        return SquareLoader(split.images, split.labels, plan, device, side)
    return DaliLoader(split, plan, device, threads, side, pad_last=True)


def _tall_pictures(images: np.ndarray, pad: int, turns: int, device: torch.device) -> np.ndarray | Tensor:
    """(CHUNKS, rows * padded, padded, 3) on the device: padded images, then turned as Draws.flip 1 to `turns` - 1."""
    count, side = images.shape[:2]
    padded = side + 2 * pad
    rows = -(-count * turns // CHUNKS)  # images of a tall picture; the last one may have room left
    stored = zeros(CHUNKS * rows, padded, padded, 3)

    for start in range(0, count, PADDED):
        block = images[start : start + PADDED]
        end = start + len(block)
        stored[start:end] = np.pad(block, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        for turn in range(1, turns):
            across, down = (slice(None, None, -1 if turn & bit else 1) for bit in (1, 2))
            stored[turn * count + start : turn * count + end] = stored[start:end, down, across]
    tall = stored.reshape(CHUNKS, rows * padded, padded, 3)
    return torch.from_numpy(tall).to(device) if device.type == "cuda" else tall
