"""Tokenises texts by the checkpoint's own tokenizer.json, from any number of threads.

transformers 5 rebuilds the pipeline of XLM-R (and some others) in code and gives other ids than tokenizer.json for
whitespace and literal special tokens; the published models were trained with the file, so the file is what runs here,
and its hash is part of an index's identity. Truncation is ours: setting it on the Rust object is what makes
concurrent use of transformers' tokenizers fail with "Already borrowed". The cost is that a very long text is
tokenised whole before it is cut, which is also how its dropped tokens can be counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from actors.checkpoints.chain_reader import read_module_chain
from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import resolve_folder
from actors.checkpoints.module_chain import RUNNABLE, ModuleChain
from actors.outputs import IntArray, TokenBatch, offsets_of
from actors.spec import EmbedderSpec
from actors.text.tokenizer_file import TokenizerFile, read_tokenizer_file

VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")
"""Files that transformers makes a tokenizer of where there is no tokenizer.json."""


UNSTATED_LENGTH = 10**9
"""transformers puts 10**30 where no length is stated."""


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Tokenises texts; immutable and picklable. `prefix` and `suffix`: the special ids around every single text."""

    backend: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    named: dict[str, int]
    """Ids by role: `cls_token`, `eos_token`, ... as far as the checkpoint names them."""
    truncates_left: bool
    sha256: str
    """Of tokenizer.json and the special tokens put around a text."""
    pads_left: bool = False
    max_length: int | None = None
    """What tokenizer_config.json states as the longest text; None if it states none."""

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.named.values())

    @property
    def vocab_size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def names(self) -> list[str]:
        """Returns the token of each id, word-piece marks included; empty for an id outside the vocabulary."""
        return [self.backend.id_to_token(token) or "" for token in range(self.vocab_size)]

    @cached_property
    def continuing(self) -> npt.NDArray[np.bool_]:
        """Returns (vocab_size,), whether a token continues the word before it, by the vocabulary's marks."""
        names = self.names
        if any(name.startswith("##") for name in names):
            return np.array([name.startswith("##") for name in names])
        for mark in ("▁", "Ġ"):  # of a piece that begins a word: SentencePiece's, byte-level BPE's
            if any(name.startswith(mark) for name in names):
                return np.array([name.isalnum() and not name.startswith(mark) for name in names])
        return np.zeros(len(names), bool)

    def tokenise(self, texts: Iterable[str], max_length: int) -> TokenBatch:
        """Tokenises with special tokens to at most `max_length` per text; counts what was truncated."""
        added = len(self.prefix) + len(self.suffix)
        room = max_length - added
        if max_length < 1 or room < 0:
            raise ValueError(f"max_length {max_length} has no room for the {added} special tokens of every text")
        rows = self.ids(texts)
        kept = [self.cut(row, room) for row in rows]
        return batch_of(
            [[*self.prefix, *row, *self.suffix] for row in kept],
            np.fromiter((len(row) - len(k) for row, k in zip(rows, kept, strict=True)), np.int32, len(rows)),
        )

    def tokenise_bare(self, texts: Iterable[str], max_length: int) -> TokenBatch:
        """Tokenises without special tokens, to at most `max_length` per text."""
        rows = self.ids(texts)
        kept = [self.cut(row, max_length) for row in rows]
        dropped = (len(row) - len(k) for row, k in zip(rows, kept, strict=True))
        return batch_of(kept, np.fromiter(dropped, np.int32, len(rows)))

    def ids(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns token ids without special tokens, not truncated."""
        return [encoding.ids for encoding in self._encode(texts)]

    def counts(self, texts: Sequence[str]) -> IntArray:
        """Counts the tokens of each text, without special tokens: int64."""
        return np.fromiter(map(len, self._encode(texts)), np.int64, len(texts))

    def offsets(self, text: str) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
        """Returns ids without special tokens, and the start and end of each in characters of `text`."""
        encoding = self._encode([text], with_offsets=True)[0]
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return np.array(encoding.ids, dtype=np.int32), spans[:, 0], spans[:, 1]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, special tokens included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """Returns one token's text without blanks around it; decoded once per process."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self.decode([token_id]).strip()
        return self._token_texts[token_id]

    @cached_property
    def _token_texts(self) -> dict[int, str]:
        return {}

    def cut(self, row: list[int], room: int) -> list[int]:
        """Truncates ids to at most `room`, from the side that the checkpoint truncates."""
        if len(row) <= room:
            return row
        return row[len(row) - room :] if self.truncates_left else row[:room]

    def _encode(self, texts: Iterable[str], with_offsets: bool = False) -> list[Encoding]:
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        encodings: list[Encoding] = encode(checked_texts(texts), add_special_tokens=False)
        return encodings


def batch_of(rows: Sequence[Sequence[int]], n_truncated: npt.NDArray[np.int32]) -> TokenBatch:
    """Returns rows of ids as one TokenBatch."""
    offsets = offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
    return TokenBatch(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets, n_truncated)


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Returns the texts as a list.

    TypeError for what is not a str, ValueError for a lone surrogate; both name the position.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"expected a list of str, got one {type(texts).__name__}")
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        raise TypeError(f"expected a list of str, got an array of shape {texts.shape}")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # iterating either gives names, not texts
        fix = "list(d.values())" if isinstance(texts, Mapping) else "one column, such as df['text'].tolist()"
        raise TypeError(f"expected a list of str, got a {type(texts).__name__}: give {fix}")
    try:
        items = list(texts)
    except TypeError:
        raise TypeError(f"expected a list of str, got {type(texts).__name__}") from None
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"text {i} is {_describe(item)}, expected str")
        if not item.isascii():
            _check_unicode(i, item)
    return items


def _describe(item: object) -> str:
    return "None" if item is None else f"{type(item).__name__} ({str(item)[:40]})"


def _check_unicode(i: int, item: str) -> None:
    try:
        item.encode()
    except UnicodeEncodeError as error:
        code, place = ord(item[error.start]), error.start
        raise ValueError(f"text {i} is not valid Unicode: lone surrogate U+{code:04X} at character {place}") from None


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> TextTokenizer:
    """Reads the tokenizer of a checkpoint folder.

    Without a tokenizer.json, the one that transformers makes of its files.
    """
    return assemble_tokenizer(folder, read_tokenizer_file(folder) or _from_transformers(folder, trust_remote_code))


def assemble_tokenizer(folder: Path, read: TokenizerFile) -> TextTokenizer:
    """Returns a folder's pipeline with the special tokens around a text and its hash."""
    backend, named = read.backend, read.named
    prefix, suffix = _special_tokens(folder, backend, named)
    file = folder / "tokenizer.json"
    pipeline = file.read_bytes() if file.is_file() else backend.to_str().encode()
    sha256 = hashlib.sha256(pipeline + repr((prefix, suffix)).encode()).hexdigest()
    return TextTokenizer(backend, prefix, suffix, named, read.truncates_left, sha256)


def _from_transformers(folder: Path, trust_remote_code: bool = False) -> TokenizerFile:
    wrapper = read_transformers_tokenizer(folder, trust_remote_code)
    backend = wrapper.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    named = {role: int(wrapper.convert_tokens_to_ids(str(token))) for role, token in _named_tokens(wrapper)}
    return TokenizerFile(backend, named, wrapper.truncation_side == "left")


def read_library_tokenizer(folder: Path, options: Mapping[str, Any], lower_case: bool = False) -> TextTokenizer:
    """Reads the tokenizer as sentence-transformers does: transformers' own class for the folder.

    transformers 5 rebuilds some pipelines in code (XLM-R's) and then differs from tokenizer.json in whitespace and
    literal special tokens; a sentence-transformers folder is run as that library runs it. options: arguments of
    AutoTokenizer that the folder stores. lower_case: texts are lower-cased before everything else.
    """
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Normalizers
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file() and not any((folder / name).is_file() for name in VOCABULARIES):
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected tokenizer.json or one of {', '.join(VOCABULARIES)}"
        )
    kept = {name: value for name, value in options.items() if name not in ("trust_remote_code", "cache_dir")}
    try:
        wrapper = AutoTokenizer.from_pretrained(folder, **kept)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from error
    backend: Tokenizer = wrapper.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if lower_case and "Lowercase" not in str(backend.normalizer):
        before = [Lowercase()] if backend.normalizer is None else [Lowercase(), backend.normalizer]
        backend.normalizer = Normalizers(before)
    named = {role: int(wrapper.convert_tokens_to_ids(str(token))) for role, token in _named_tokens(wrapper)}
    prefix, suffix = _special_frame(backend)
    sha256 = hashlib.sha256(backend.to_str().encode() + repr((prefix, suffix)).encode()).hexdigest()
    stated = int(wrapper.model_max_length)
    return TextTokenizer(
        backend, prefix, suffix, named, wrapper.truncation_side == "left", sha256,
        pads_left=wrapper.padding_side == "left", max_length=stated if stated < UNSTATED_LENGTH else None,
    )  # fmt: skip


def read_chain_tokenizer(chain: ModuleChain) -> TextTokenizer:
    """Reads the tokenizer of a sentence-transformers chain; a static embedding's is its tokenizer.json alone."""
    if not chain.is_static:
        return read_library_tokenizer(chain.transformer, chain.tokenizer_options, chain.lower_case)
    file = chain.transformer / "tokenizer.json"
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{file} is no tokenizer: {error}") from error
    cut = backend.truncation or {}
    backend.no_truncation()
    backend.no_padding()
    sha256 = hashlib.sha256(backend.to_str().encode()).hexdigest()
    return TextTokenizer(backend, (), (), {}, cut.get("direction") == "left", sha256, max_length=cut.get("max_length"))


def read_transformers_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Reads a folder's tokenizer as transformers does: from tokenizer.json alone if there is one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if not trust_remote_code and not any((folder / name).is_file() for name in VOCABULARIES):
        # transformers 5 would silently build a BERT tokenizer of five tokens here
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected tokenizer.json or one of {', '.join(VOCABULARIES)}"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from error


def _named_tokens(wrapper: Any) -> list[tuple[str, object]]:
    return [(role, token) for role, token in wrapper.special_tokens_map.items() if not isinstance(token, list)]


def _special_tokens(folder: Path, backend: Tokenizer, named: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns tokenizer.json's special tokens, and the bos or eos that tokenizer_config.json adds to them.

    transformers 5 lets `add_bos_token: false` in the config replace the file's whole post-processor, which takes the
    closing token from Qwen3-Embedding; so the file is read once more where the config has such a flag.
    """
    config = read_json(folder / "tokenizer_config.json") or {}
    file = folder / "tokenizer.json"
    if not file.is_file() or not {"add_bos_token", "add_eos_token"} & set(config):
        return _special_frame(backend)
    prefix, suffix = _special_frame(Tokenizer.from_file(str(file)))
    bos, eos = named.get("bos_token"), named.get("eos_token")
    if config.get("add_bos_token") and bos is not None and bos not in prefix:
        prefix = (bos, *prefix)
    if config.get("add_eos_token") and eos is not None and eos not in suffix:
        suffix = (*suffix, eos)
    return prefix, suffix


def _special_frame(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids before and after a single text, from one probe with and one without special tokens."""
    probes = chain(["a"], backend.get_vocab())
    probe, bare = next((text, ids) for text in probes if (ids := backend.encode(text, add_special_tokens=False).ids))
    full = backend.encode(probe, add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise CheckpointError("the tokenizer's post-processor changes the text's own tokens; only framing is supported")


def load_tokenizer(spec: EmbedderSpec) -> TextTokenizer:
    """Loads the tokenizer of `spec.model`'s passages without weights. A model that is not cached is fetched whole."""
    folder = resolve_folder(spec.model, spec.revision, spec.cache_dir, spec.trust_remote_code)
    modules = read_module_chain(folder, spec.model_class) if spec.model_class in RUNNABLE else None
    if modules is not None:  # its transformer may lie in a folder below, and its settings may change the tokenizer
        return read_chain_tokenizer(modules)
    return read_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
