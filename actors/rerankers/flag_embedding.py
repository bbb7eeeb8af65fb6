"""Holds what FlagEmbedding's four reranker classes share: arguments as options, and pairs spread over several devices.

A class lists its arguments once, as dataclass fields, in upstream's order and with upstream's defaults. They stay
attributes and are read at every call, so that `reranker.max_length = 1024` works as it does upstream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from actors.embedders.device_pool import Devices, device_names
from actors.models.compat import ComputeArgument, UpstreamModel, compute_of
from actors.models.transformers_objects import load_module
from actors.rerankers.adapters import merge_lora
from actors.rerankers.engine import Reranker, RerankOptions, Scorer, Scores, score_lists
from actors.rerankers.loading import Checkpoint, open_checkpoint
from actors.rerankers.pairs import checked_pairs
from actors.spec import ComputeSpec, DType
from actors.text.prompts import PLAIN

OPTIONS = frozenset(field.name for field in fields(RerankOptions))
NO_EFFECT = frozenset({"use_dataloader", "num_workers"})
"""Arguments of upstream's compute_score that choose how it pads; there is nothing to pad here."""
OLD_NAMES = {"compress_layer": "compress_layers"}


@dataclass
class RerankerCompat(UpstreamModel):
    """Holds one loaded reranker per device."""

    _: KW_ONLY
    passage_max_length: int | None = None
    """Tokens kept of a passage at most. Upstream takes and ignores it; `max_length` limits the pair in any case."""
    device: Devices = None
    """Another name for `devices`."""
    compute: ComputeArgument = None
    """None: FlagEmbedding's numbers. "auto": the fastest that this machine does well. Or a ComputeSpec."""

    auto_class: ClassVar[str | None] = None
    """transformers' class of the module that `model` gives; None if it has none."""

    @staticmethod
    def load(checkpoint: Checkpoint) -> Scorer:
        """Loads the model and its head; each class implements its own."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        given = vars(self)
        if given["devices"] is None:
            given["devices"] = self.device
        self.target_devices = device_names(given["devices"])
        self.engines = [_engine(self.load, given, device, self._options()) for device in self.target_devices]

    @classmethod
    def defaults(cls) -> RerankOptions:
        """Returns the default options of this class; without a limit on pairs per pass, only tokens count."""
        given: dict[str, Any] = {field.name: field.default for field in fields(cls) if field.name in OPTIONS}
        return RerankOptions(**given | {"batch_size": None})

    @property
    def engine(self) -> Reranker:
        return self.engines[0]

    @property
    def _checkpoint_folder(self) -> Path:
        return self.engine.checkpoint.folder

    @cached_property
    def model(self) -> nn.Module:
        """Returns transformers' module for direct use; loads it now, in addition to what scores.

        Raises TypeError for the layered classes, which transformers does not have.
        """
        if self.auto_class is None:
            raise TypeError(f"{type(self).__name__} has no transformers module: its decoder is tridex's own")
        checkpoint = self.engine.checkpoint
        module: nn.Module = load_module(
            self.auto_class, checkpoint.folder, self.target_devices[0], checkpoint.trust_remote_code
        )
        if checkpoint.adapter is not None:
            merge_lora(dict(module.named_parameters()), checkpoint.adapter)
        return module

    def stop_self_pool(self) -> None:
        """Does nothing, for callers written for upstream: there are no processes to end."""

    def compute_score(self, sentence_pairs: Any, **changes: Any) -> list[float] | list[list[float]]:
        """Scores one (query, passage) or a list of them, in order.

        `changes` replace the constructor's arguments for this call: batch_size, query_max_length, passage_max_length,
        max_length, normalize, prompt, cutoff_layers, compress_layers, compress_ratio as far as the class has them. With
        several cutoff layers: a list of lists, in the order of `cutoff_layers`. Raises TypeError or ValueError, naming
        the pair, for anything but two strings.
        """
        pairs = checked_pairs(sentence_pairs)
        changes = {OLD_NAMES.get(name, name): value for name, value in changes.items() if name not in NO_EFFECT}
        options = self._options().changed(changes)
        return score_lists(self._score(pairs, options))

    def _score(self, pairs: list[tuple[str, str]], options: RerankOptions) -> Scores:
        n = min(len(self.engines), len(pairs))
        if n < 2:
            return self.engine.score_pairs(pairs, options)
        with ThreadPoolExecutor(n) as pool:
            parts = list(pool.map(lambda i: self.engines[i].score_pairs(pairs[i::n], options), range(n)))
        scores = np.empty((len(pairs), parts[0].shape[1]), dtype=np.float32)
        for i, part in enumerate(parts):
            scores[i::n] = part
        return scores

    def _options(self) -> RerankOptions:
        return RerankOptions(**{name: value for name, value in vars(self).items() if name in OPTIONS})


@dataclass
class DecoderCompat(RerankerCompat):
    """Holds the arguments that the three decoder classes begin with."""

    model_name_or_path: str
    peft_path: str | None = None
    use_fp16: bool = False
    use_bf16: bool = False
    query_instruction_for_rerank: str | None = "A: "
    query_instruction_format: str = PLAIN
    passage_instruction_for_rerank: str | None = "B: "
    passage_instruction_format: str = PLAIN
    cache_dir: str | None = None
    trust_remote_code: bool = False
    devices: Devices = None


def _engine(
    load: Callable[[Checkpoint], Scorer], given: dict[str, Any], device: str, options: RerankOptions
) -> Reranker:
    checkpoint = open_checkpoint(
        given["model_name_or_path"],
        cache_dir=given["cache_dir"],
        adapter=given.get("peft_path"),
        trust_remote_code=given["trust_remote_code"],
        compute=compute_of(
            given["compute"],
            ComputeSpec(device=device, dtype=precision(given["use_fp16"], given["use_bf16"], device)),
        ),
    )
    return Reranker(checkpoint, load(checkpoint), options)


def precision(use_fp16: bool, use_bf16: bool, device: str) -> DType:
    """Chooses bf16 before fp16 before fp32. On a CPU fp16 means fp32, as upstream: few processors multiply fp16."""
    if use_bf16:
        return "bf16"
    return "fp16" if use_fp16 and not device.startswith("cpu") else "fp32"
