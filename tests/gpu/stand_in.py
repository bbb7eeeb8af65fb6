"""A device `cuda:0` where there is none: tensors that say `cuda`, compute on the CPU, and count what a host waits for.

`DeviceTensor` wraps a CPU tensor. `StandIn` is a dispatch mode that sees every operator: it refuses a mixture of
devices as CUDA does, notes waits, and replaces `torch.cuda`'s streams and events. Two things are stricter than a card:

* a copy to pinned memory arrives when an event recorded after it (or its stream) is waited for; until then the buffer
  holds 0xFF bytes. So results that are read too early are wrong numbers, not good luck.
* a tensor that one stream wrote and another reads, with no wait between them, is an error.

What it cannot show is what kernels do: `tests/gpu/test_fake_cuda.py` checks their signatures with torch's CUDA build.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
WAITS = {
    "item": ("_local_scalar_dense", "item", "is_nonzero", "equal"),
    "nonzero": ("nonzero", "masked_select", "_unique2", "unique_dim", "nonzero_numpy", "argwhere"),
}
"""Operators whose result's value or size the host has to know."""
DIRECT: dict[Any, Any] = {
    torch.Tensor.copy_: aten.copy_.default,
    torch.Tensor.contiguous: aten.contiguous.default,
    torch.Tensor.__invert__: aten.bitwise_not.default,
}
"""Methods that torch without CUDA refuses before it asks the tensor."""


class DeviceTensor(torch.Tensor):
    """Says that it lies on `cuda:0`; `inner` is the CPU tensor that it computes with."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], inner: Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=CUDA,
        )  # fmt: skip
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # torch without CUDA has no guard for these
            return StandIn.required().subscript(*args)
        if func in DIRECT:
            return StandIn.required().call(DIRECT[func], args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert StandIn.current is not None, f"{func} on the stand-in device outside of the test that made it"
        return StandIn.current.call(func, args, kwargs or {})


@dataclass(eq=False)
class Stream:
    """Stands in for torch.cuda.Stream. `issued` counts what was queued on it, `seen` what it waited for of others."""

    name: str = "default"
    issued: int = 0
    seen: dict[Stream, int] = field(default_factory=dict)
    pending: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    """Copies to the host that have not arrived: (issued, how to complete it)."""

    def wait_stream(self, other: Stream) -> None:
        self.seen[other] = other.issued

    def synchronize(self) -> None:
        device = StandIn.required()
        device.wait("stream.synchronize")
        device.complete(self, self.issued)


class Event:
    """Stands in for torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.place: tuple[Stream, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or StandIn.required().stream
        self.place = stream, stream.issued
        StandIn.required().note("event.record")

    def synchronize(self) -> None:
        device = StandIn.required()
        device.wait("event.synchronize")
        assert self.place is not None, "an event is waited for that was never recorded"
        device.complete(*self.place)


class StandIn(TorchDispatchMode):
    """The device. `waits` counts what made the host wait, by kind; `where` names the lines; `calls` is the order."""

    current: StandIn | None = None

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.default = Stream()
        self.streams = [self.default]
        self.own = threading.local()
        self.pinned: dict[int, Tensor] = {}
        self.written: dict[int, tuple[Stream, int]] = {}
        self.host_seen: dict[Stream, int] = {}
        self.sources: list[tuple[Stream, int, Tensor, Tensor]] = []
        self.waits: Counter[str] = Counter()
        self.where: Counter[str] = Counter()
        self.calls: list[tuple[str, str]] = []
        self.out_of_memory_above: int | None = None
        """Elements of a tensor from which an allocation fails."""

    @classmethod
    def required(cls) -> StandIn:
        assert cls.current is not None
        return cls.current

    @property
    def stream(self) -> Stream:
        found: Stream = getattr(self.own, "stream", self.default)
        return found

    def note(self, what: str) -> None:
        with self.lock:
            self.calls.append((self.stream.name, what))

    def wait(self, kind: str) -> None:
        frames = [
            f for f in traceback.extract_stack() if "/tests/gpu/" not in f.filename and "/torch/" not in f.filename
        ]
        with self.lock:
            self.waits[kind] += 1
            self.where[f"{kind} at {frames[-1].filename.split('/', 3)[-1]}:{frames[-1].lineno}"] += 1
        self.note(kind)

    def reset(self) -> None:
        self.waits.clear(), self.where.clear(), self.calls.clear()

    def complete(self, stream: Stream, issued: int) -> None:
        """Lets everything arrive that was queued on a stream before `issued`."""
        with self.lock:
            for _, arrive in [entry for entry in stream.pending if entry[0] <= issued]:
                arrive()
            stream.pending = [entry for entry in stream.pending if entry[0] > issued]
            self.host_seen[stream] = max(issued, self.host_seen.get(stream, 0))
            for owner, at, source, snapshot in self.sources:
                if owner is stream and at <= issued:
                    assert torch.equal(source, snapshot), "a pinned buffer was reused before the device had read it"
            self.sources = [s for s in self.sources if not (s[0] is stream and s[1] <= issued)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs one operator: on the CPU with the inner tensors, noted and checked where it is on the device."""
        flat, spec = pytree.tree_flatten((args, kwargs))
        devices = [x for x in flat if isinstance(x, torch.device)]
        inputs = [x for x in flat if isinstance(x, DeviceTensor)]
        onto = devices[0].type == "cuda" if devices else bool(inputs)
        name = func._schema.name.split("::")[1]
        if inputs or onto:
            self.check(name, func, args, kwargs, flat, inputs)
        copied = self.copy(name, args, kwargs)
        if copied is not NotImplemented:
            return copied
        plain = [x.inner if isinstance(x, DeviceTensor) else CPU if isinstance(x, torch.device) else x for x in flat]
        inner_args, inner_kwargs = pytree.tree_unflatten(plain, spec)
        pinned = inner_kwargs.pop("pin_memory", None)
        found = _varlen(*inner_args) if name == "_varlen_attn" else func(*inner_args, **inner_kwargs)
        if pinned:
            self.pinned[found.untyped_storage().data_ptr()] = found
        if not onto:
            return found
        own = {id(x.inner): x for x in inputs}
        wrapped = pytree.tree_map(lambda x: self.wrap(x, own) if isinstance(x, Tensor) else x, found)
        made = [x for x in pytree.tree_leaves(wrapped) if isinstance(x, DeviceTensor)]
        self.queued(made, [] if func._schema.is_mutable and name != "detach_" else inputs)  # detach_ writes no memory
        return wrapped

    def subscript(self, x: Tensor, index: Any, *value: Any) -> Any:
        """Does `x[index]`, or `x[index] = value`."""
        flat, spec = pytree.tree_flatten(index)
        tensors = [i for i in flat if isinstance(i, Tensor)]
        on_device = [i for i in (x, *tensors, *value) if isinstance(i, DeviceTensor)]
        self.check("index", "index", (x, tensors), {}, [], on_device)
        assert isinstance(x, DeviceTensor), "a tensor on the CPU is indexed by one on the device"
        plain = pytree.tree_unflatten([i.inner if isinstance(i, DeviceTensor) else i for i in flat], spec)
        if not value:
            found = self.wrap(x.inner[plain], {})
            self.queued([found], [x])
            return found
        x.inner[plain] = value[0].inner if isinstance(value[0], DeviceTensor) else value[0]
        if isinstance(value[0], Tensor) and not isinstance(value[0], DeviceTensor) and value[0].dim():
            self.from_host(value[0], x, False)
        else:
            self.queued([x], [])
        return None

    def wrap(self, x: Tensor, own: dict[int, DeviceTensor]) -> DeviceTensor:
        limit = self.out_of_memory_above
        if limit is not None and x.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (stand-in)")
        return own[id(x)] if id(x) in own else DeviceTensor(x)

    def queued(self, outputs: list[DeviceTensor], inputs: list[DeviceTensor]) -> None:
        """Counts an operator on this stream; what it gave was written by it, unless it is a view of an input."""
        viewed = {x.inner.untyped_storage().data_ptr() for x in inputs}
        with self.lock:
            self.stream.issued += 1
            for x in outputs:
                place = x.inner.untyped_storage().data_ptr()
                if place not in viewed:
                    self.written[place] = (self.stream, self.stream.issued)

    def check(self, name: str, func: Any, args: Any, kwargs: Any, flat: list[Any], inputs: list[DeviceTensor]) -> None:
        for kind, names in WAITS.items():
            if name in names:
                self.wait(kind)
        if name == "repeat_interleave" and kwargs.get("output_size") is None and len(flat) and _has_repeats(args):
            self.wait("repeat_interleave without output_size")
        if name == "segment_reduce" and kwargs.get("lengths") is not None and not kwargs.get("unsafe"):
            self.wait("segment_reduce by lengths")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            for x in args[1]:
                if x is not None and x.dtype in (torch.bool, torch.uint8):
                    self.wait("index by a mask")
                elif x is not None and not isinstance(x, DeviceTensor):
                    self.wait("index by a host tensor")
        elif name not in ("copy_", "_to_copy", "to"):
            on_host = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) and x.dim()]
            assert not (inputs and on_host), (
                f"{func}: some tensors are on cuda:0, others {[x.shape for x in on_host]} on the CPU"
            )
        for x in inputs:
            self.check_order(name, x)

    def check_order(self, name: str, x: DeviceTensor) -> None:
        with self.lock:
            writer, at = self.written.get(x.inner.untyped_storage().data_ptr(), (self.stream, 0))
            known = max(self.stream.seen.get(writer, 0), self.host_seen.get(writer, 0))
            assert writer is self.stream or at <= known, (
                f"{name} on {self.stream.name} reads what {writer.name} may still write"
            )

    def copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Handles operators that move data between host and device; NotImplemented for every other."""
        if name in ("to", "_to_copy"):
            return self.to(args, kwargs)
        if name == "copy_":
            target, source = args[:2]
            if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
                return NotImplemented
            if isinstance(source, DeviceTensor):
                self.to_host(target, source.inner, bool((args[2:] or (kwargs.get("non_blocking"),))[0]))
                return target
            if isinstance(target, DeviceTensor):
                target.inner.copy_(source)
                self.from_host(source, target, bool((args[2:] or (kwargs.get("non_blocking"),))[0]))
                return target
        return NotImplemented

    def to(self, args: Any, kwargs: dict[str, Any]) -> Any:
        x, flat = args[0], pytree.tree_leaves((args[1:], kwargs))
        devices = [v for v in flat if isinstance(v, torch.device)]
        dtypes = [v for v in flat if isinstance(v, torch.dtype)]
        others = [v for v in args[1:] if isinstance(v, Tensor)]
        device = devices[0] if devices else others[0].device if others else x.device
        dtype = dtypes[0] if dtypes else others[0].dtype if others else x.dtype
        flags = [v for v in args[1:] if isinstance(v, bool)]
        non_blocking = bool(kwargs.get("non_blocking", flags[0] if flags else False))
        inner = x.inner if isinstance(x, DeviceTensor) else x
        if device.type == x.device.type:
            made = inner.to(dtype)
            if isinstance(x, DeviceTensor):
                wrapped = x if made is inner else self.wrap(made, {})
                self.queued([wrapped], [x])
                return wrapped
            return made
        if device.type == "cuda":
            wrapped = self.wrap(inner.to(dtype, copy=True), {})
            self.from_host(inner, wrapped, non_blocking)
            return wrapped
        self.wait("copy to ordinary memory")
        self.complete(self.stream, self.stream.issued)
        return inner.to(dtype, copy=True)

    def from_host(self, source: Tensor, target: DeviceTensor, non_blocking: bool) -> None:
        """Queues a copy to the device; from ordinary memory the host waits until it, too, has arrived."""
        self.queued([target], [])
        if source.untyped_storage().data_ptr() in self.pinned and non_blocking:
            self.note("copy from pinned memory")
            with self.lock:
                self.sources.append((self.stream, self.stream.issued, source, source.clone()))
        elif source.dim():
            self.wait("copy from ordinary memory")
            self.complete(self.stream, self.stream.issued)

    def to_host(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        if target.untyped_storage().data_ptr() not in self.pinned or not non_blocking:
            self.wait("copy to ordinary memory")
            self.complete(self.stream, self.stream.issued)
            target.copy_(source)
            return
        target.view(torch.uint8).fill_(0xFF) if target.numel() and target.dim() else None
        arrived = source.clone()
        with self.lock:
            self.stream.issued += 1
            self.stream.pending.append((self.stream.issued, lambda: target.copy_(arrived)))
        self.note("copy to pinned memory")


def _has_repeats(args: Any) -> bool:
    return len(args) == 1 or isinstance(args[1], Tensor)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, scale: float | None = None, window_size: list[int] | None = None, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Computes what flash's variable-length kernel documents, text by text in float32."""
    assert cu_seq_q.dtype == torch.int32, "cu_seqlens must be int32"
    assert query.dtype in (torch.float16, torch.bfloat16), "flash attention takes half precision"
    assert query.shape[-1] <= 256, "flash attention takes heads of 256 dimensions at most"
    assert query.shape[-1] % 8 == 0, "flash attention takes heads of a multiple of 8 dimensions"
    assert all(x.stride(-1) == 1 for x in (query, key, value)), "the last dimension must be contiguous"
    out, groups = torch.empty(query.shape, dtype=query.dtype), query.shape[1] // key.shape[1]
    bounds, (left, right) = cu_seq_q.tolist(), window_size or (-1, -1)
    assert max_q == max(b - a for a, b in pairwise(bounds))
    for a, b in pairwise(bounds):
        q = query[a:b].float().transpose(0, 1)
        k, v = (x[a:b].float().transpose(0, 1).repeat_interleave(groups, 0) for x in (key, value))
        ahead = torch.arange(b - a)[None, :] - torch.arange(b - a)[:, None]
        hidden = (ahead > right) & (right >= 0) | (-ahead > left) & (left >= 0) | (ahead > 0) & bool(is_causal)
        scores = (q @ k.transpose(1, 2)) * (scale or 1 / math.sqrt(q.shape[-1]))
        out[a:b] = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1).to(query.dtype)
    return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.int64)


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    """Stands in for torch.cuda.stream; dispatch modes are per thread, so it also enters the device's."""
    device = StandIn.required()
    before = getattr(device.own, "stream", None)
    device.own.stream = stream
    try:
        with device:
            yield
    finally:
        device.own.stream = before or device.default


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Replaces `torch.cuda` for a test; everything that torch does in this thread goes through the device."""
    device = StandIn()

    def new_stream(*args: Any, **kwargs: Any) -> Stream:
        stream = Stream(f"stream {len(device.streams)}")
        device.streams.append(stream)
        return stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        patch.setattr(torch.cuda, "Stream", new_stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", on_stream)
        patch.setattr(torch.cuda, "current_stream", lambda device_=None: device.stream)
        patch.setattr(torch.cuda, "default_stream", lambda device_=None: device.default)
        patch.setattr(torch.cuda, "empty_cache", lambda: device.note("empty_cache"))
        patch.setattr(torch.cuda, "get_device_capability", lambda device_=None: (9, 0))
        patch.setattr(StandIn, "current", device)
        with device:
            yield device
