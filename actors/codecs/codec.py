"""Defines the base class of the ColBERT codecs: how one float32 vector is stored, read back and scored.

A codec is one file beside this one, with everything that is particular to it, and one line in `actors.codecs.table`.
Optional abilities are methods that a codec overrides: training on vectors of the corpus, encoding on an accelerator,
and turning a query so that codes can be scored as plain sign bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from actors.outputs import Array

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
CodecParameters = npt.NDArray[Any]
"""What a trained codec has estimated from the corpus: a codebook (centroids) or a projection matrix."""
Scorer = Literal["decode", "sign_bits", "lookup_table"]


class Codec(ABC):
    """Encodes unit vectors for storage and decodes them. Stateless; a TrainedCodec holds its parameters."""

    name: ClassVar[str]
    """What configs and the index's identity call it."""
    is_float: ClassVar[bool] = False
    """Stored as `list<fixed_size_list<float>>`, not as bytes."""
    scorer: ClassVar[Scorer] = "decode"
    """The MaxSim kernel that scores its codes: `pipelines.retrieval.scoring.maxsim` maps these names to functions.

    decode: codes are decoded in blocks and multiplied by BLAS. sign_bits: `transform_query` gives query vectors whose
    products with the codes, read as signs, are the exact ones. lookup_table: a sum of looked-up products per part.
    """

    @abstractmethod
    def encode(self, vectors: Floats) -> Array:
        """Encodes unit vectors (m, d): uint8 (m, width), or floats (m, d) if `is_float`."""

    @abstractmethod
    def decode(self, codes: Array, dim: int) -> Floats:
        """Decodes what is stored, (m, width), to float32 (m, dim)."""

    @abstractmethod
    def width(self, dim: int) -> int:
        """Returns the bytes of one stored vector of `dim` dimensions."""

    def transform_query(self, query: Floats) -> tuple[Floats, Codec]:
        """Returns query vectors (m, d') and the codec under which the stored codes have the same products with them."""
        return query, self

    def encode_on_device(self, vectors: Tensor) -> Tensor:
        """Encodes float vectors (m, d), m > 0, on the accelerator that computed them, to the bytes of `encode`."""
        raise TypeError(f"the {self.name} codec encodes on the host")

    @property
    def encodes_on_device(self) -> bool:
        """Returns whether the codec can encode on an accelerator."""
        return type(self).encode_on_device is not Codec.encode_on_device


class TrainedCodec(Codec):
    """Needs parameters before it can encode: `train` estimates them from a corpus, and the index stores them."""

    def __init__(self, parameters: CodecParameters | None = None) -> None:
        self.parameters: Floats | None = None if parameters is None else parameters.astype(np.float32)

    @classmethod
    @abstractmethod
    def train(cls, vectors: Array) -> CodecParameters:
        """Estimates the parameters from vectors (m, d) of the corpus; ValueError if there are none."""

    def required_parameters(self) -> Floats:
        """Returns the parameters; ValueError if the codec was constructed without them."""
        if self.parameters is None:
            raise ValueError(f"the {self.name} codec needs the parameters of its index: get_codec(name, parameters)")
        return self.parameters

    @classmethod
    def _training_vectors(cls, vectors: Array) -> Floats:
        if not len(vectors):
            raise ValueError(f"the {cls.name} codec is trained on the first texts, and there is none that can be read")
        return np.asarray(vectors, np.float32)
