"""Pools and encodes ColBERT vectors on the accelerator that computed them: a sixteenth of the bytes leaves a GPU.

At M3's size a GPU gives some 650k tokens per second: 1.3 GB/s of float16, and packing their signs on the host would
keep a core busy and be late. On a CPU numpy packs bits faster than torch, so there the host keeps the work.

torch is imported where tensors are: a driver makes a DeviceCodec for its actors and needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actors.codecs.table import get_codec
from actors.outputs import IntArray, offsets_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeviceCodec:
    """Encodes ColBERT vectors on their device by a codec that `encodes_on_device`, pooled in groups of neighbours."""

    codec: str
    group_size: int = 1
    """So many neighbouring vectors of a text become one, their mean normalised again."""

    def lengths(self, lengths: IntArray) -> IntArray:
        """Returns the vectors per text that `lengths` vectors are pooled to."""
        return -(-lengths // self.group_size)

    def width(self, dim: int) -> int:
        """Returns the bytes of one encoded vector of `dim` dimensions."""
        return get_codec(self.codec).width(dim)

    def __call__(self, vectors: Tensor, lengths: IntArray) -> Tensor:
        """Encodes (m, d) floats of texts with `lengths` vectors each: uint8 (m', width) on the same device."""
        import torch

        if not len(vectors):
            return torch.empty(0, self.width(vectors.shape[1]), dtype=torch.uint8, device=vectors.device)
        if self.group_size > 1:
            vectors = _average_groups(vectors.float(), self._group_lengths(lengths))
        return get_codec(self.codec).encode_on_device(vectors)

    def _group_lengths(self, lengths: IntArray) -> IntArray:
        """Returns the number of vectors in each group: `group_size`, fewer in a text's last group."""
        counts = self.lengths(lengths)
        sizes = np.full(counts.sum(), self.group_size, np.int64)
        last = counts.cumsum()[counts > 0] - 1
        sizes[last] -= (counts * self.group_size - lengths)[counts > 0]
        return sizes


def _average_groups(vectors: Tensor, sizes: IntArray) -> Tensor:
    import torch
    from torch.nn.functional import normalize

    from actors.transfers import to_device

    offsets = to_device(offsets_of(sizes), vectors.device)  # given lengths, torch would check them on the host
    return normalize(torch.segment_reduce(vectors, "sum", offsets=offsets), dim=-1, eps=1e-12)
