"""Implements Visualized-BGE: text, picture, or picture with text, in one vector space.

The tower's patch states, projected, stand between a text's first token and the rest of it in the input of the BGE
encoder, whose CLS state is the vector. Texts alone are what the BGE model makes of them. Rows are packed, not padded,
so a picture with a long text costs its neighbours nothing; a picture takes 196 (base) or 256 (M3) of the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import AutoConfig

from actors.codecs.device_codec import DeviceCodec
from actors.compute.batching import inverse_permutation
from actors.compute.resolve import resolve_compute
from actors.embedders.base import Embedder
from actors.embedders.engine import Engine
from actors.models.preparation import Kind, load_preparation
from actors.network import heads
from actors.network.packed_encoder import PackedEncoder
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch, concat, offsets_of, ranges
from actors.spec import EmbedderSpec, Output, Pooling
from actors.transfers import to_device, to_host
from actors.vision.preprocess import Picture, Pixels, load, normalised, pixels_of
from actors.vision.weights import load_parts


class VisualizedBGE(Embedder):
    """Embeds by one loaded model; texts alone by `embed_corpus` and `embed_queries` as with any embedder.

    model_name_bge: folder or hub id of the BGE model, for config and tokenizer; from_pretrained, where given, is a
    local folder to take them from instead. model_weight: the published `.pth` file, or the same tensors as safetensors.
    normlized is spelled as upstream spells it. options: further fields of EmbedderSpec.

    Raises CheckpointError if weights are missing, left over or of another shape.
    """

    def __init__(
        self,
        model_name_bge: str,
        model_weight: str | Path,
        normlized: bool = True,
        sentence_pooling_method: Pooling = "cls",
        from_pretrained: str | None = None,
        **options: Any,
    ) -> None:
        spec = EmbedderSpec(
            model=from_pretrained or model_name_bge,
            pooling=sentence_pooling_method,
            normalize=normlized,
            picture_weights=str(model_weight),
        )
        self._load(replace(spec, **options))

    @classmethod
    def from_spec(cls, spec: EmbedderSpec) -> VisualizedBGE:
        """Loads the model of a spec with `picture_weights`."""
        model = cls.__new__(cls)
        model._load(spec)
        return model

    def _load(self, spec: EmbedderSpec) -> None:
        assert spec.picture_weights is not None, "the spec names picture_weights"
        preparation = load_preparation(spec)
        known = preparation.spec
        assert known.pooling is not None, "the spec is complete"
        config = AutoConfig.from_pretrained(preparation.folder)
        compute = resolve_compute(spec.compute, config)
        parts = load_parts(Path(spec.picture_weights), config, compute.device, compute.dtype)
        self.tower, self.projection = parts.tower, parts.projection
        self.encoder = PackedEncoder(parts.text)
        self.head = (known.pooling, bool(known.normalize), known.truncate_dim)
        engine = Engine(self.encoder, compute, ("dense",), *self.head, None, None, frozenset())
        super().__init__(preparation, engine)

    @property
    def size(self) -> int:
        """Returns the side of the square pictures that the tower takes, in pixels."""
        return self.tower.config.size

    @property
    def text_room(self) -> int:
        """Returns the tokens left for a text beside a picture's positions."""
        return len(self.encoder.places) - self.tower.config.patches

    def encode(self, image: Picture | list[Picture] | None = None, text: str | list[str] | None = None) -> Tensor:
        """Encodes pictures, texts, or pictures with one text each: float32 (n, d); a single one gives n = 1, as
        upstream.

        Raises PictureError for a picture that cannot be used, ValueError if there is neither, or not one text a
        picture.
        """
        texts = [text] if isinstance(text, str) else text
        if image is not None:
            batch = self.embed_images(image if isinstance(image, list) else [image], texts)
        elif texts is not None:
            batch = self.embed_corpus(texts)
        else:
            raise ValueError("encode: give image, text or both")
        assert batch.dense is not None, "dense is the one output of this model"
        return torch.from_numpy(batch.dense)

    def embed_images(
        self, images: Sequence[Picture], texts: Sequence[str] | None = None, kind: Kind = "passage"
    ) -> EmbeddingBatch:
        """Decodes and embeds pictures, each with one text or an empty one; see also `embed_pixels`."""
        pixels = [pixels_of(load(image), self.size) for image in images]
        side = self.size
        return self.embed_pixels(np.stack(pixels) if pixels else np.zeros((0, side, side, 3), np.uint8), texts, kind)

    def embed_pixels(
        self, pixels: Pixels, texts: Sequence[str] | None = None, kind: Kind = "passage"
    ) -> EmbeddingBatch:
        """Embeds as `embed_images`, from pixels uint8 (n, size, size, 3) decoded by `preprocess`.

        n_tokens counts a picture's patches too; a text is cut to what the picture leaves, and what is cut is counted.
        """
        texts = [""] * len(pixels) if texts is None else texts
        if len(texts) != len(pixels):
            raise ValueError(f"{len(pixels)} pictures and {len(texts)} texts: one text a picture is needed")
        limit = self.spec.query_max_length if kind == "query" else self.spec.passage_max_length
        assert limit is not None, "the spec is complete"
        return self._embed_fused(pixels, self.tokenise(texts, kind, min(limit, self.text_room)))

    def embed_rows(
        self,
        tokens: TokenBatch,
        table: pa.Table,
        rows: IntArray,
        outputs: Sequence[Output] | None = None,
        device_codec: DeviceCodec | None = None,
    ) -> EmbeddingBatch:
        """Returns rows of a block whose column `pixels`, if it has one, holds pictures (size x size x 3 bytes) or null.

        Raises ValueError for a text that is too long for its picture.
        """
        if "pixels" not in table.column_names:
            return self.embed_tokens(tokens, outputs, device_codec)
        pixels = table.column("pixels").take(pa.array(rows)).combine_chunks()
        seen = pixels.is_valid().to_numpy(zero_copy_only=False)
        pictured, plain = np.flatnonzero(seen), np.flatnonzero(~seen)
        shape = (-1, self.size, self.size, 3)
        values = np.frombuffer(b"".join(pixels.drop_null().to_pylist()), np.uint8).reshape(shape)
        parts = [self._embed_fused(values, tokens.take(pictured)), self.embed_tokens(tokens.take(plain))]
        return concat(parts).take(inverse_permutation([pictured, plain]))

    def _embed_fused(self, pixels: Pixels, tokens: TokenBatch) -> EmbeddingBatch:
        longest = int(tokens.lengths.max(initial=0))
        if longest > self.text_room:
            raise ValueError(
                f"a text has {longest} tokens, its picture leaves room for {self.text_room}: lower max_length"
            )
        lengths = tokens.lengths + self.tower.config.patches
        batches, parts = self.engine.executor.run(
            lengths, lambda rows: self._embed(pixels[rows], tokens.take(rows)), None
        )
        return concat(parts).take(inverse_permutation(batches)) if parts else self.embed_tokens(tokens)

    @torch.inference_mode()
    def _embed(self, pixels: Pixels, tokens: TokenBatch) -> EmbeddingBatch:
        lengths = tokens.lengths + self.tower.config.patches
        offsets = offsets_of(lengths)
        hidden = self.encoder.forward_embedded(self._fused(self._patches(pixels), tokens, offsets), offsets)
        pooling, unit, cut = self.head
        dense = to_host(heads.dense(hidden, offsets, pooling, normalize=unit, truncate_dim=cut))[0]
        return EmbeddingBatch(dense, None, None, lengths.astype(np.int32), tokens.n_truncated)

    def _patches(self, pixels: Pixels) -> Tensor:
        """Computes the tower's patch states (n, patches, h), at the encoder's positions 1, 2, ..."""
        states = self.tower(normalised(pixels, self.compute.device, self.compute.dtype))[:, 1:]
        places = self.encoder.places[1 : 1 + self.tower.config.patches]
        return self.encoder.norm(self.projection(states) + places)

    def _fused(self, patches: Tensor, tokens: TokenBatch, offsets: IntArray) -> Tensor:
        """Inserts each row's patches behind its first token, at position 0, and before the other tokens: (T, h)."""
        count = patches.shape[1]
        place = ranges(np.zeros(len(tokens), np.int64), tokens.lengths)
        place += np.where(place > 0, count, 0)
        starts = offsets[:-1]
        text = self._text(tokens, place)
        fused = text.new_empty((int(offsets[-1]), text.shape[1]))
        fused[self._on_device(np.repeat(starts, tokens.lengths) + place)] = text
        fused[self._on_device(ranges(starts + 1, np.full(len(tokens), count)))] = patches.flatten(0, 1)
        return fused

    def _text(self, tokens: TokenBatch, place: IntArray) -> Tensor:
        encoder = self.encoder
        words = embedding(self._on_device(tokens.ids.astype(np.int64)), encoder.words)
        return encoder.norm(words + encoder.kinds[0] + embedding(self._on_device(place), encoder.places))

    def _on_device(self, values: IntArray) -> Tensor:
        return to_device(values, self.compute.device)
