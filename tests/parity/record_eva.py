"""Records what timm's EVA02 towers compute, for `test_eva.py`. Run in an environment of its own, once:

    python -m venv timm-env && timm-env/bin/pip install torch numpy && timm-env/bin/pip install --no-deps timm
    timm-env/bin/python tests/parity/record_eva.py

timm imports much of torchvision when it is loaded and uses nothing of it for these models; empty modules stand in for
it here, so that torchvision (which would want a CUDA build of torch) need not be installed.

The weights are numpy's, seeded by each parameter's published name; the record holds the states of a few tokens (first,
one in the middle, last) of each picture, and the mean square of all, so that it stays at a few kilobytes.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.parity.eva_cases import CASES, KEPT, pictures, tower_weights

RENAMED = {
    "mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2", "mlp.ffn_ln": "mlp.norm",
    "attn.inner_attn_ln": "attn.norm", "attn.q_bias": "attn.q_proj.bias", "attn.v_bias": "attn.v_proj.bias",
}  # fmt: skip


class StandIn(MetaPathFinder, Loader):
    """Gives a module with any attribute for every import below torchvision."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> MagicMock:
        return MagicMock(__path__=[])

    def exec_module(self, module: object) -> None:
        """Nothing to run."""


def timm_name(name: str) -> str:
    for published, theirs in RENAMED.items():
        name = name.replace(published, theirs)
    return name


def record(case: str) -> dict[str, np.ndarray]:
    from timm.models.eva import Eva

    config = CASES[case]
    model = Eva(
        img_size=config.size, patch_size=config.patch, embed_dim=config.width, depth=config.depth,
        num_heads=config.width // 64, qkv_fused=False, mlp_ratio=config.hidden / config.width, swiglu_mlp=True,
        scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16), num_classes=0,
    )  # fmt: skip
    weights = {timm_name(name): value for name, value in tower_weights(config).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("norm.", "fc_norm.")) for name in missing), missing
    model.norm = torch.nn.Identity()
    with torch.inference_mode():
        states = model.eval().forward_features(pictures(config)).numpy()
    return {f"{case}_states": states[:, list(KEPT)], f"{case}_square": (states.astype(np.float64) ** 2).mean((1, 2))}


def main() -> None:
    sys.meta_path.append(StandIn())
    arrays = {name: array for case in CASES for name, array in record(case).items()}
    np.savez_compressed(Path(__file__).parent / "eva_timm.npz", **arrays)


if __name__ == "__main__":
    main()
