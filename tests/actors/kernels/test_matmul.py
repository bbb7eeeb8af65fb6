from __future__ import annotations

import numpy as np
import pytest

from actors.kernels.matmul import matmul_single_thread


@pytest.mark.parametrize(("m", "d", "k"), [(16, 384, 384), (1, 7, 3), (0, 8, 8), (3, 192, 24)])
def test_products_are_those_of_blas(m: int, d: int, k: int) -> None:
    rng = np.random.default_rng(m)
    vectors, matrix = rng.standard_normal((m, d), np.float32), rng.standard_normal((d, k), np.float32)
    np.testing.assert_allclose(matmul_single_thread(vectors, matrix), vectors @ matrix, atol=1e-4)
    assert matmul_single_thread(vectors, matrix).dtype == np.float32
