"""The project's own code on an H100 that is not there: on fake CUDA tensors, which have all but values.

    with pretend():
        model = on_gpu(ResNet())
        with Watch() as seen:
            model(*batch(512, 32)[:1])

It shows where the host waits for the device, what is uploaded, where devices meet or an activation leaves
channels_last, and how many kernels are launched. `generate` has torch.compile write the code for that GPU. Numbers,
memory and time need a real one. tests/rehearse.py says how to run it.
"""

import ctypes
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="H100", uuid="none", major=9, minor=0, gcnArchName="", total_memory=85 * 10**9, L2_cache_size=50 * 2**20,
    multi_processor_count=132, warp_size=32, max_threads_per_block=1024, max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)  # fmt: skip
M = TypeVar("M", bound=nn.Module)
PARTS = {"SGD": "optimizer", "Muon": "optimizer", "Metrics": "metrics", "Lookahead": "lookahead"}
"""What a kernel is for, by the class whose method launches it; others are of the forward or the backward pass."""


class Stream:
    """A CUDA stream, or an event in one, at which everything has happened already."""

    cuda_stream = stream_id = device_index = 0

    def wait_stream(self, other: "Stream") -> None: ...
    def record(self) -> None: ...
    def query(self) -> bool:
        return True


class Graph:
    """A CUDA graph: `seen` is what was recorded, and a replay does nothing."""

    seen: "Watch"

    def replay(self) -> None: ...


@contextmanager
def recording(graph: Graph, **options: object) -> Iterator[None]:
    with Watch() as graph.seen:
        yield


ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "_exchange_device": lambda device: 0,
    "_maybe_exchange_device": lambda device: 0,
    "_lazy_init": lambda: None,
    "get_device_properties": lambda device=None: H100,
    "get_device_capability": lambda device=None: (9, 0),
    "is_bf16_supported": lambda including_emulation=True: True,
    "synchronize": lambda device=None: None,
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "current_stream": lambda device=None: Stream(),
    "is_current_stream_capturing": lambda: False,
    "stream": nullcontext,
    "Stream": Stream,
    "Event": Stream,
    "CUDAGraph": Graph,
    "graph": recording,
}
"""What torch.cuda says on an H100."""


@contextmanager
def no_context() -> Iterator[None]:
    """Before a backward pass torch asks its CUDA hooks which devices have a context, and they fail without a driver.

    The hooks are one C++ object. For a while it gets a copy of its table of virtual functions, in which the one that is
    asked says no. Which one that is says the class's header.
    """
    root = Path(torch.__file__).parent
    header = (root / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
    methods = re.findall(r"virtual\s+[^;{]*?(~?\w+)\s*\(", header)
    position = methods.index("hasPrimaryContext") + sum(name.startswith("~") for name in methods)  # it has two entries
    hooks = ctypes.CDLL(str(root / "lib/libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    hooks.restype = ctypes.POINTER(ctypes.c_void_p)
    table = hooks()
    word, above, below = ctypes.sizeof(ctypes.c_void_p), 2, 120  # entries before and after where the table points to
    original = table[0]
    copy = (ctypes.c_void_p * (above + below)).from_buffer_copy(
        ctypes.string_at(original - above * word, (above + below) * word)
    )
    says_no = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, device: False)
    copy[above + position] = ctypes.cast(says_no, ctypes.c_void_p)
    table[0] = ctypes.addressof(copy) + above * word
    try:
        yield
    finally:
        table[0] = original


@contextmanager
def pretend() -> Iterator[None]:
    """Inside, an H100 is here, and every new tensor is fake. Its convolutions are cuDNN's, as on a real one."""
    cudnn = torch._C._ConvBackend.Cudnn  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.enter_context(no_context())
        stack.enter_context(patch.multiple(torch.cuda, **ANSWERS))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        stack.enter_context(patch.object(torch._C, "_select_conv_backend", lambda *given, **named: cudnn))
        stack.enter_context(FakeTensorMode())
        yield


def on_gpu(model: M) -> M:
    """`model.to("cuda").to(memory_format=torch.channels_last)`, which modules refuse where tensors are fake."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = parameter.detach().to(GPU)
            there = there.to(memory_format=torch.channels_last) if there.ndim == 4 else there
            setattr(module, name, nn.Parameter(there, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(GPU))
    return model


def batch(size: int, side: int) -> tuple[Tensor, Tensor]:
    """Images (size, 3, side, side) uint8, channels_last as DALI gives them, and labels."""
    nhwc = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=GPU)
    return nhwc.permute(0, 3, 1, 2), nhwc.new_zeros(size, dtype=torch.int64)


class Watch(TorchDispatchMode):
    """Sees every operator. Masks choose everything.

    Args:
        value: what the host reads, whatever it reads.

    Attributes:
        kernels: launched, by part.
        waits, uploads, strays: where the host waits for the device, where it sends a tensor, and where an activation,
            or a convolution's gradient, is not channels_last: operators with their file and line.
    """

    def __init__(self, value: float = 0) -> None:
        super().__init__()
        self.value = value
        self.kernels: Counter[str] = Counter()
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self.strays: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a fake tensor for its device
            return func(*args, **kwargs)
        given = tensors((args, kwargs))
        line, part = caller(sys._getframe(1))
        name = f"{func._schema.name.removeprefix('aten::')} at {line}"
        if name.startswith("_local_scalar_dense"):
            if given[0].is_cuda:
                self.waits.append(name)
            return float(self.value) if given[0].is_floating_point() else self.value
        if name.startswith("index ") and any(tensor.dtype == torch.bool for tensor in given[1:]):
            if given[0].is_cuda:
                self.waits.append(name)
            return given[0].clone()
        try:
            # The optimizer's and the scaler's own kernels have no rule for fake tensors; they return nothing.
            result = None if name.startswith(("_fused_", "_amp_")) else func(*args, **kwargs)
        except Exception as error:
            error.add_note(f"in {name}")
            raise
        made = tensors(result)
        if any(tensor.is_cuda for tensor in given + made):
            self.kernels[part] += launches(func, args)
        if name.startswith(("copy_", "_to_copy")) and made[0].is_cuda != given[-1].is_cuda:
            blocks = not (kwargs.get("non_blocking") or args[2:] == (True,))
            if made[0].is_cuda and given[-1].ndim:
                self.uploads.append(name)
            elif not made[0].is_cuda and blocks:
                self.waits.append(name)
        images = made if part == "forward" and line else given if name.startswith("convolution_backward") else []
        if not all(t.is_contiguous(memory_format=torch.channels_last) for t in images if t.ndim == 4 and t.is_cuda):
            self.strays.append(name)
        return result


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def caller(frame: FrameType | None) -> tuple[str, str]:
    """The innermost line of the project, and the part of a step it belongs to. The backward pass has its own thread."""
    line = part = ""
    while frame and not part:
        path = Path(frame.f_code.co_filename)
        if not line and path.parent.parent == ROOT and path.parent != TESTS:
            line = f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        part = PARTS.get(frame.f_code.co_qualname.split(".")[0], "")
        frame = frame.f_back
    return line or "the backward pass", part or ("forward" if line else "backward")


def launches(func: Any, args: tuple[Any, ...]) -> int:
    """About how many kernels an operator launches."""
    name = func._schema.name.removeprefix("aten::")
    if func.is_view or name.startswith(("empty", "new_empty", "_unsafe_view", "_reshape_alias")):
        return 0
    if name == "convolution_backward":
        return sum(args[-1])
    if name == "baddbmm":
        return 2  # what is added is copied first
    if name.startswith("native_batch_norm"):
        return 4
    if not name.startswith("_foreach"):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and tensors(arg)]
    casts = name == "_foreach_copy_"  # in the same kernel
    alike = all(
        (a.shape, a.stride(), casts or a.dtype) == (b.shape, b.stride(), casts or b.dtype)
        for other in lists[1:]
        for a, b in zip(lists[0], other, strict=True)
    )
    return (2 if "norm" in name else -(-len(lists[0]) // 64)) if alike else len(lists[0])


class Driver:
    """Triton's, for an H100."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return GPU

    def get_device_interface(self) -> Any:
        return torch.cuda


def generate(function: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> dict[str, Counter[str]]:
    """The calls in the code that torch.compile writes for `function` and for its backward pass, by name.

    Inductor writes it, Triton and ptxas compile each kernel for an H100, and instead of the code, which cannot run
    here, the graph that it was written from runs. Inside `pretend`. 45 s.
    """
    graphs: list[Any] = []
    kernels: list[Any] = []

    def keep(graph: Any, examples: Any, **named: Any) -> Any:
        graphs.append(compile_fx_inner(graph, examples, **named))

        def run(given: list[Any]) -> Any:
            values = list(given)
            given.clear()
            return graph(*values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def loaded(tuner: Any) -> None:
        kernels.append(tuner)
        tuner.launchers = [object()] * len(tuner.compile_results)

    # What would compute or measure on the device is off.
    off = {"joint_graph_constant_folding": False, "shape_padding": False, "fx_graph_cache": False, "compile_threads": 1}
    triton.runtime.driver.set_active(Driver())
    torch._dynamo.reset()
    with ExitStack() as stack:
        for name in ("exchange_device", "maybe_exchange_device", *ANSWERS):
            answer: Any = ANSWERS.get(f"_{name}", ANSWERS.get(name))
            if hasattr(CudaInterface, name):
                stack.enter_context(patch.object(CudaInterface, name, staticmethod(answer)))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(patch.object(CachingAutotuner, "_make_launchers", loaded))
        stack.enter_context(patch.object(CachingAutotuner, "_dynamic_scale_rblock", lambda self: None))
        stack.enter_context(torch._inductor.config.patch(off))
        backend: Any = lambda graph, examples: compile_fx(graph, examples, inner_compile=keep)  # noqa: E731
        torch.compile(function, fullgraph=True, dynamic=False, backend=backend)(*arguments)[0].backward()
    assert len(graphs) == 2 and kernels
    calls = r"^\s+(triton_\w+)\.run\(|^[^#\n]*?((?:extern_kernels|torch\.ops\.aten)\.[\w.]+)\("
    found = []
    for graph in graphs:
        body = re.sub(r"'''.*?'''", "", graph.source_code, flags=re.S)  # without the kernels' own code
        found.append(Counter(ours or other for ours, other in re.findall(calls, body, re.M)))
    return dict(zip(("forward", "backward"), found, strict=True))


class HostValues(TorchFunctionMode):
    """Gives zeros where a fake tensor on the CPU becomes an array."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy:
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))
