"""The parameters of trained codecs travel with the table, and without it nothing is decoded."""

from __future__ import annotations

import numpy as np
import pytest

from actors.codecs import parameters
from actors.codecs import table as codecs

VECTORS = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)


@pytest.mark.parametrize("codec", sorted(codecs.TRAINED))
def test_parameters_survive_the_metadata_of_a_schema(codec: str) -> None:
    trained = codecs.TRAINED[codec].train(VECTORS)
    metadata = parameters.to_metadata({"m": trained})
    back = parameters.from_metadata(metadata, "m")
    assert back is not None
    assert back.dtype == trained.dtype
    assert np.array_equal(back, trained)
    assert parameters.fingerprint(back) == parameters.fingerprint(trained)
    assert parameters.from_metadata(metadata, "other") is None
    assert parameters.from_metadata(None, "m") is None


@pytest.mark.parametrize("codec", sorted(codecs.TRAINED))
def test_without_its_parameters_nothing_is_decoded(codec: str) -> None:
    with pytest.raises(ValueError, match="needs the parameters of its index"):
        codecs.decode(np.zeros((1, 2), np.uint8), codec, 32)


@pytest.mark.parametrize("codec", sorted(codecs.TRAINED))
def test_training_needs_vectors(codec: str) -> None:
    with pytest.raises(ValueError, match=f"the {codec} codec is trained on the first texts, and there is none"):
        codecs.TRAINED[codec].train(np.zeros((0, 32), np.float32))
