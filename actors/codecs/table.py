"""Lists the ColBERT codecs: every name that a config or an index's identity may hold.

Most codecs need no training: their levels follow from the dimension alone, because ColBERT vectors are unit vectors
whose coordinates behave like draws from N(0, 1/d). Two are trained on the corpus, and their parameters belong to the
index (`actors.codecs.parameters`). What each loses is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import numpy as np

from actors.codecs.bits2 import Bits2
from actors.codecs.codec import Codec, CodecParameters, Floats, TrainedCodec
from actors.codecs.floats import Float16, Float32
from actors.codecs.int8 import Int8
from actors.codecs.product_quantization import ProductQuantization
from actors.codecs.rotated_sign import RotatedSign
from actors.codecs.sign import Sign
from actors.codecs.sign_half import SignHalf
from actors.outputs import Array

CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Float32, Float16, Int8, Bits2, Sign, RotatedSign, ProductQuantization, SignHalf)
}
TRAINED: dict[str, type[TrainedCodec]] = {
    name: codec for name, codec in CODECS.items() if issubclass(codec, TrainedCodec)
}
"""Codecs that are trained on vectors of the corpus before they encode any."""


def get_codec(codec: str | Codec, parameters: CodecParameters | None = None) -> Codec:
    """Looks a codec up by name (a Codec comes back as it is); ValueError lists the names.

    parameters: those of a trained codec, without which it has a width and encodes nothing; others ignore them.

    >>> {name: get_codec(name).width(384) for name in ("float16", "int8", "rotated_sign", "pq")}
    {'float16': 768, 'int8': 386, 'rotated_sign': 48, 'pq': 24}
    """
    if isinstance(codec, Codec):
        return codec
    if codec not in CODECS:
        raise ValueError(f"unknown ColBERT codec {codec!r}; there are {', '.join(CODECS)}")
    return TRAINED[codec](parameters) if codec in TRAINED else CODECS[codec]()


def encode(vectors: Array, codec: str | Codec) -> Array:
    """Encodes unit vectors (m, d), float32 or float16: uint8 (m, width) or, for float codecs, (m, d)."""
    return get_codec(codec).encode(np.asarray(vectors, np.float32))


def decode(codes: Array, codec: str | Codec, dim: int) -> Floats:
    """Decodes what is stored, (m, width), to float32 (m, dim).

    >>> unit = np.array([[0.6, -0.8]], np.float32)
    >>> decode(encode(unit, "int8"), "int8", 2).astype(float).round(2).tolist()
    [[0.6, -0.8]]
    """
    return get_codec(codec).decode(codes, dim)


def width(codec: str | Codec, dim: int) -> int:
    """Returns the bytes of one stored vector of `dim` dimensions."""
    return get_codec(codec).width(dim)
