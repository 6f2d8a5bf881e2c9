"""Several processes as one run: torchrun starts them, DistributedDataParallel averages their gradients.

    torchrun --standalone --nproc-per-node=4 train.py full      # or: make train GPUS=4
    python train.py                                             # one process: no group, nothing here does anything

Every rank has the same weights and takes its share of each global batch. Rank 0 alone speaks and writes files, and
what it holds is the run: so it can save at any moment without asking the others. Batch norm normalises by each
rank's own share; the running statistics that are evaluated and saved are rank 0's. (Their mean would need all ranks
at each save, and would differ by rounding with how often that is.)

The first rank to fail says why, and torchrun ends the others. A stop signal ends a process at once, wherever it
is: a step that waits for the others could not be finished without them.
"""

import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.device import pick_device
from ground.entry import describe
from ground.entry import execute as execute_alone
from ground.mistake import Mistake

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # for a rank that lives but does not come: an ended one is noticed at once
FIRST_WORD = 5.0  # seconds that rank 0 has to tell what went wrong in all ranks alike


@dataclass(eq=False)
class World:
    """This process among those of the run; by itself, the only one."""

    rank: int = 0
    size: int = 1
    """Processes on all machines; their ranks are 0 .. size - 1."""
    local_rank: int = 0
    local_size: int = 1
    """The same on this machine."""
    restarted: bool = False
    """Whether torchrun started these processes in place of some of which one failed."""

    @classmethod
    def from_environment(cls) -> Self:
        """What torchrun says in RANK and the like, or Mistake; one process where it says nothing."""
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
        texts = {name: os.environ.get(name) or str(number) for name, number in alone.items()}  # some are set to ""
        for name, text in texts.items():
            if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
                raise Mistake(f"{name} is {text}: torchrun sets it to a number; unset it to train in one process")
        rank, size, local_rank, local_size, restarts = map(int, texts.values())
        if not (rank < size and local_rank < local_size <= size):
            state = ", ".join(f"{name} {text}" for name, text in texts.items())
            raise Mistake(f"{state}: they do not fit together; unset them to train in one process")
        return cls(rank, size, local_rank, local_size, restarts > 0)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """As `pick_device`. Raises Mistake also without a GPU for each process of this machine."""
        device = pick_device(wanted)
        if device.type == "cuda" and self.local_size > torch.cuda.device_count():
            raise Mistake(
                f"{self.local_size} processes on a machine with {torch.cuda.device_count()} GPU: start one for each "
                "GPU (torchrun --nproc-per-node, make train GPUS=), or use --device cpu"
            )
        return device

    def threads(self, wanted: int) -> int:
        """CPU threads: as wanted, or for 0 this process's share of the cores; still 0 for one process."""
        if wanted or self.size == 1:
            return wanted
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def replicate(self, model: nn.Module, sync_batch_norm: bool = False) -> Callable[..., Any]:
        """(function, *inputs) -> function(model, *inputs), whose backward averages gradients over the ranks.

        All ranks leave with rank 0's weights. With `sync_batch_norm` the model's batch norms are replaced and
        normalise by the whole global batch; Mistake on a CPU, where torch has none. One process wraps nothing.
        """
        if sync_batch_norm and next(model.parameters()).device.type != "cuda":
            raise Mistake("--sync-batch-norm is for CUDA, and this run is on a CPU: leave it out")
        if self.size == 1:
            return lambda function, *inputs: function(model, *inputs)
        if sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; torch 2.11 does not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            # Buffers are not sent at every step: `evaluate` fetches rank 0's, which come out the same.
            return DistributedDataParallel(
                _Applied(model), broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
            )

    def scale_loss(self, mean: Tensor, images: int, global_batch: int) -> Tensor:
        """What to minimise, from the mean loss over this rank's `images`: averaged over the ranks it is the mean
        over the global batch, however uneven their shares are."""
        return mean if self.size == 1 else mean * (images * self.size / global_batch)

    def sum_(self, values: Tensor) -> Tensor:
        """In place, the sum over the ranks. On CUDA the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: float) -> float:
        """The largest of the ranks' values, on each of them."""
        if self.size == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.item()

    def require_agreement(self, make: Callable[[], Mapping[str, object]]) -> None:
        """Raises Mistake on every rank unless all of them make the same values, by name."""
        if self.size == 1:
            return
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, {name: str(value) for name, value in make().items()})
        first = gathered[0]
        for rank, other in enumerate(gathered):
            names = [name for name in other if first.get(name) != other[name]]
            unlike = [f"{name} ({first.get(name)}, {other[name]})" for name in names]
            if unlike:
                raise Mistake(f"ranks 0 and {rank} differ in {', '.join(unlike)}: start all ranks alike")

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's running statistics."""
        for buffer in model.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, 0)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]


ALONE = World()


class _Applied(nn.Module):
    """Forward and loss as one module: DistributedDataParallel sees both, and they compile as one graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(self.model, *inputs)


def execute(main: Callable[[Sequence[str], World], None], entry: str) -> NoReturn:
    """`ground.entry.execute` of one process, or of one of those that torchrun started."""
    try:
        world = World.from_environment()
    except Mistake as error:
        print(f"{entry}: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    if world.size == 1:
        execute_alone(lambda arguments: main(arguments, world), entry)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = 1
    try:
        execute_alone(lambda arguments: _joined(main, arguments, world), f"{entry}, rank {world.rank}")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # destructors of a group whose other members are gone may wait for them


def _joined(main: Callable[[Sequence[str], World], None], arguments: Sequence[str], world: World) -> None:
    store = _own_store(world)
    device = None
    if world.local_size <= torch.cuda.device_count():
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device else "gloo", store=store, timeout=TIMEOUT,
        rank=world.rank, world_size=world.size, device_id=device,
    )  # fmt: skip
    world.restarted = world.largest(world.restarted) > 0  # each machine counts those that it caused
    try:
        with open(os.devnull, "w") as nowhere:
            if world.first:
                main(arguments, world)
            else:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    main(arguments, world)
    except Exception:
        if not _speaks(store, world):
            sys.exit(1)
        raise
    dist.destroy_process_group()


def _own_store(world: World) -> dist.Store:
    """A part of torchrun's store that is new: the store outlives a restart (torch 2.15), and ranks would go on waiting
    for one that is dead but has left its address there. Raises TimeoutError where a rank did not come."""
    store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    token = uuid4().hex
    if world.first:
        end = time.monotonic() + TIMEOUT.total_seconds()
        while store.add(f"arrived {token}", 0) < world.size - 1:
            if time.monotonic() > end:
                raise TimeoutError(f"not all of {world.size} processes came within {TIMEOUT}")
            for name in (f"here is {rank}" for rank in range(1, world.size)):
                if store.check([name]):
                    store.set(f"welcome {store.get(name).decode()}", token)
            time.sleep(0.02)
    else:
        store.set(f"here is {world.rank}", token)
        token = store.get(f"welcome {token}").decode()  # waits for it
        store.add(f"arrived {token}", 1)
    return dist.PrefixStore(token, store)


def _speaks(store: dist.Store, world: World) -> bool:
    """Whether this rank failed by itself: not after another, and most likely because of it."""
    end = time.monotonic() + (0 if world.first else FIRST_WORD)
    try:
        while time.monotonic() < end and not store.check(["failed"]):
            time.sleep(0.1)
        return store.add("failed", 1) == 1
    except dist.DistError:  # the store went with the rank that held it
        return False
