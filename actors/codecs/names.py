"""Names the codecs, poolings and weightings that settings may hold; imports nothing, so that `--help` is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    CodecName = str
else:  # pydantic lists the names in its errors
    CodecName = Literal["float32", "float16", "int8", "bits2", "sign", "rotated_sign", "pq", "sign_half"]
TokenPooling = Literal["none", "sequential2", "sequential3", "distinct"]
SparseWeighting = Literal["max", "counted"]
