"""Samples rows by their content hash: equal corpora give equal samples, whatever the order of rows and builds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.outputs import IntArray
from pipelines.store.table import Snapshot

Keys = npt.NDArray[np.uint64]


def sample_by_content(snapshot: Snapshot, n: int) -> IntArray:
    """Returns the positions of n rows, those with the smallest keys made of content hash and chunk index.

    The hash is as good as random, so this is a uniform sample without replacement. In the order of their keys: sums
    over the rows are then equal to the last digit, too. Reads 20 bytes per row.
    """
    parts = [_mix_keys(batch) for batch in snapshot.scan(["content_hash", "chunk_index"], 65_536)]
    keys = np.concatenate([np.zeros(0, np.uint64), *parts])
    if len(keys) > n:
        places = np.sort(np.argpartition(keys, n - 1)[:n])
        return places[np.argsort(keys[places], kind="stable")]
    return np.argsort(keys, kind="stable")


def _mix_keys(batch: pa.RecordBatch) -> Keys:
    """Mixes the first 8 bytes of the content hash with the chunk index (splitmix64's finaliser): uint64 (n,)."""
    hashes = batch.column(0)
    raw = np.frombuffer(hashes.buffers()[1], np.uint64)[2 * hashes.offset : 2 * (hashes.offset + len(hashes))]
    chunk = batch.column(1).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = raw[::2] ^ ((chunk + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys: Keys = mixed ^ (mixed >> np.uint64(31))
    return keys
