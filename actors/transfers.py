"""Copies arrays to the accelerator and results back, so that the host waits once for a batch.

`tensor.to(device)` from ordinary memory waits until the stream has done all that was queued before: seven such waits
stood in one batch of M3's three outputs, and each left the GPU idle until the host had queued more. Copies from pinned
memory are queued like any kernel. The price is one more copy on the host, of a few bytes per token on the way in; torch
keeps a pinned buffer out of use until the copies that read it are done.

What is cached on a device and shared by streams (tables of angles, rotations) is copied by a plain `.to(device)`
instead: that wait is what makes it safe to read from another stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.outputs import Array


def to_device(values: Array, device: torch.device) -> Tensor:
    """Copies an array to the device without waiting; on a CPU the tensor shares the array's memory."""
    ordinary = torch.from_numpy(values)
    if device.type != "cuda":
        return ordinary.to(device)
    pinned = torch.empty(ordinary.shape, dtype=ordinary.dtype, pin_memory=True)
    return pinned.copy_(ordinary).to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[Array]:
    """Copies tensors to host memory and waits once, for the current stream only; on a CPU nothing is copied.

    The event blocks instead of spinning, so that the core is free for tokenising and writing meanwhile.
    """
    device = next((x.device for x in tensors if x.is_cuda), None)
    if device is None:
        return [x.cpu().numpy() for x in tensors]
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
    for pinned, x in zip(copies, tensors, strict=True):
        pinned.copy_(x, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    done.synchronize()
    return [pinned.numpy() for pinned in copies]
