"""The tower against numbers that `record_eva.py` recorded from timm (1.0.31)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.vision.eva import EvaTower, config_of
from tests.parity.eva_cases import CASES, KEPT, pictures, tower_weights

RECORD = Path(__file__).parent / "eva_timm.npz"
ATOL = 5e-6
"""Against states scaled to a root mean square of 1; measured: 7e-7 to 1.3e-6."""


@pytest.mark.parametrize("case", CASES)
def test_the_tower_computes_what_timm_computes(case: str) -> None:
    config, record, weights = CASES[case], np.load(RECORD), tower_weights(CASES[case])
    assert config_of(weights) == config
    tower = EvaTower(config)
    tower.load_state_dict(weights)
    with torch.inference_mode():
        states = tower.eval()(pictures(config)).numpy()
    scale = float(np.sqrt(record[f"{case}_square"].max()))
    np.testing.assert_allclose(states[:, list(KEPT)] / scale, record[f"{case}_states"] / scale, atol=ATOL)
    np.testing.assert_allclose((states.astype(np.float64) ** 2).mean((1, 2)), record[f"{case}_square"], rtol=1e-5)
