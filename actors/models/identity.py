"""Describes an embedder from the model's files: its outputs, and the identity of an index built with it.

No weights are loaded: a driver, a plan and a loaded model all read it here, so they cannot disagree. Large files are
read once, for their fingerprint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from actors.checkpoints.loading import FITTED, PACKAGED, check_weights, fingerprint, head_file, head_width
from actors.checkpoints.module_chain import ModuleChain, chain_width, module_weights
from actors.models.preparation import Preparation
from actors.spec import OUTPUTS, Output

ASSETS = Path(__file__).resolve().parent.parent / "assets"

Identity = dict[str, str | int | float | bool | None]

CHAIN_OUTPUTS: dict[str, Output] = {
    "sentence-transformer": "dense",
    "sparse-encoder": "sparse",
    "multi-vector-encoder": "colbert",
}


def head_folder(preparation: Preparation) -> Path:
    """Returns the folder of the heads; those of a packaged model are part of this package."""
    model = preparation.spec.model
    return ASSETS / model if model in PACKAGED else preparation.folder


def available_outputs(preparation: Preparation) -> tuple[Output, ...]:
    """Returns the model's outputs: dense, and with the M3 class whatever it has a head for.

    The packaged model needs no ColBERT head: its last hidden states serve as they are.
    """
    if preparation.chain is not None:
        return (CHAIN_OUTPUTS[preparation.chain.model_class],)
    if preparation.spec.model_class != "encoder-only-m3":
        return ("dense",)
    folder = head_folder(preparation)
    identity = preparation.spec.model in PACKAGED
    has = {
        "dense": True,
        "sparse": head_file(folder, "sparse_linear") is not None,
        "colbert": identity or head_file(folder, "colbert_linear") is not None,
    }
    return tuple(output for output in OUTPUTS if has[output])


def describe(preparation: Preparation) -> Identity:
    """Returns everything that an index must have been built with to be searched with this model.

    Raises CheckpointError if a weight file is missing or damaged.
    """
    spec, pictures = preparation.spec, preparation.spec.picture_weights
    if pictures is None:
        check_weights(preparation.folder)
    chain, hidden = preparation.chain, preparation.hidden_size
    width = head_width(head_folder(preparation), "colbert_linear") or hidden
    described: Identity = {
        **spec.identity(),
        "weights": fingerprint(preparation.folder if pictures is None else Path(pictures)),
        "tokenizer": preparation.tokenizer.sha256,
        "dim": min(hidden, spec.truncate_dim or hidden),
        "colbert_dim": min(width, spec.truncate_dim or width) if "colbert" in available_outputs(preparation) else None,
    }
    if spec.model in PACKAGED and (head := head_file(head_folder(preparation), "sparse_linear")) is not None:
        described["lexical_head"] = fingerprint(head)  # it changes with this program, not with the model's weights
    if chain is not None:
        described.update(_describe_chain(preparation, chain, hidden))
    if (head_folder(preparation) / FITTED).is_file():
        described["fitted_heads"] = True
    return described if pictures is None else {**described, "picture_size": _picture_size(pictures)}


def _describe_chain(preparation: Preparation, chain: ModuleChain, hidden: int) -> Identity:
    """Describes a sentence-transformers chain: its modules, their weights, and how weights are sparsified."""
    width, spec = chain_width(chain, hidden), preparation.spec
    files = [module_weights(folder) for folder in chain.weight_folders() if folder != chain.transformer]
    own = [fingerprint(file) for file in files if file.is_file()]
    if preparation.query is not None:
        own.append(preparation.query.tokenizer.sha256)
    weights = fingerprint(chain.transformer)
    described: Identity = {
        "modules": chain.digest(),
        "weights": hashlib.sha256("".join([weights, *own]).encode()).hexdigest() if own else weights,
    }
    if chain.model_class == "sparse-encoder":
        described |= {"max_active_dims": spec.max_active_dims, "sparse_threshold": spec.sparse_threshold or 0.0}
    elif chain.model_class == "multi-vector-encoder":
        described["colbert_dim"] = min(width, spec.truncate_dim or width)
    else:
        described["dim"] = min(width, spec.truncate_dim or width)
    return described


def _picture_size(picture_weights: str) -> int:
    """Reads the side in pixels of the pictures that a Visualized-BGE checkpoint takes."""
    from actors.vision.weights import tower_of

    return tower_of(Path(picture_weights)).size
