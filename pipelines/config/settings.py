"""Defines a job's settings as frozen pydantic models; an unknown key or a wrong type is refused with its path.

A config is defaults < YAML file < dotted overrides (`--set embedders.0.pool.max_size=4`). Strictness costs a user who
mistypes one error message; leniency would cost him a night.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from actors.codecs.names import CodecName, SparseWeighting, TokenPooling
from actors.spec import Boundaries, ComputeSpec, DType, EmbedderSpec, Output, PoolSpec, Window
from pipelines.config.describe import attribute_docstrings

DEFAULT_MODEL = "all-MiniLM-L6-v2"
TEXT_BESIDE_PICTURE = 256
"""Tokens of a text where nothing else is said: with a picture's 196 or 256 patches it fits both published models."""


def _integer_or_auto(value: Any) -> Any:
    """Validates an integer or "auto" with one error; a union would report one per member."""
    text = str(value)
    if text != "auto" and (isinstance(value, (bool, float)) or not text.removeprefix("-").isdecimal()):
        raise ValueError(f"must be an integer or auto, got {value!r}")
    return text if text == "auto" else int(value)


AutoInt = Annotated[int | Literal["auto"], BeforeValidator(_integer_or_auto)]


class ConfigError(ValueError):
    """Reports a wrong request; the message names the key path or the argument. The command line exits with 2."""


class InvalidRequest(ConfigError):
    """Reports an impossible search or call; the message names the argument."""


class WorkFailed(RuntimeError):
    """Reports a failure of a valid request, with its reason; committed work is kept.

    The command line shows the message without a traceback and exits with 1."""


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


TYPE_NAMES = {
    "string": "string", "str": "string", "text": "string",
    "int": "int64", "integer": "int64", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "float": "float64", "double": "float64", "float32": "float32", "float64": "float64",
    "bool": "bool", "boolean": "bool", "binary": "binary", "date": "date32[day]", "timestamp": "timestamp[us]",
}  # fmt: skip
"""Names of types that a config may state, to pyarrow's aliases; `list<T>` is a list of one of them."""


def _split_metadata(tree: Any) -> Any:
    """Splits `metadata: {price: float64, lang: {column: meta.lang}}` into names, types and source columns."""
    if not isinstance(tree, dict):
        return tree
    given = tree.get("metadata", ())
    given = [given] if isinstance(given, (str, dict)) else given
    if not isinstance(given, (list, tuple)) or all(isinstance(item, str) for item in given):
        return {**tree, "metadata": tuple(given)} if isinstance(given, (list, tuple)) else tree
    names: list[Any] = []
    types, sources = dict(tree.get("metadata_types", {})), dict(tree.get("metadata_sources", {}))
    for name, wanted in (pair for item in given for pair in _metadata_pairs(item)):
        names.append(name)
        stated = {"type": wanted} if isinstance(wanted, str) else wanted or {}
        if not isinstance(stated, dict) or set(stated) - {"type", "column"}:
            raise ValueError(f"metadata.{name}: expected a type, or a mapping with `type` and `column`, got {wanted!r}")
        types |= {name: stated["type"]} if stated.get("type") else {}
        sources |= {name: stated["column"]} if stated.get("column") else {}
    return {**tree, "metadata": tuple(names), "metadata_types": types, "metadata_sources": sources}


def _metadata_pairs(item: Any) -> list[tuple[Any, Any]]:
    return list(item.items()) if isinstance(item, dict) else [(item, None)]


def type_alias(name: str) -> str:
    """Returns pyarrow's alias of a type's name, `list<T>` included; ValueError names the nearest known one."""
    text = name.strip().lower()
    inner = re.fullmatch(r"list\s*[<\[](.*)[>\]]", text)
    if inner is not None:
        return f"list<{type_alias(inner[1])}>"
    if text in TYPE_NAMES:
        return TYPE_NAMES[text]
    near = difflib.get_close_matches(text, TYPE_NAMES, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(dict.fromkeys(TYPE_NAMES))} and list<T>"
    raise ValueError(f"no type is called {name!r}; {hint}")


class Columns(Model):
    """Names the input's columns, which may be paths into nested ones: `content.text`."""

    id: str | None = None
    """Column of the document id; None takes the first of `id`, `_id`, `doc_id`, and generates ids if there is none."""
    text: str = "text"
    """Column of the text."""
    title: str | None = None
    """None takes `title` where it exists."""
    metadata: tuple[str, ...] = ()
    """Further columns to keep in the table. A mapping states types, `{price: float64}`, or takes a column under another
    name, `{lang: {column: meta.lang, type: string}}`; without a type it is the files' own, or guessed from a sample."""
    metadata_types: dict[str, str] = {}
    """Types stated by a mapping in `metadata`; a value that does not fit becomes null and is counted."""
    metadata_sources: dict[str, str] = {}
    """Source columns stated by a mapping in `metadata`."""

    @model_validator(mode="before")
    @classmethod
    def _metadata_has_types(cls, tree: Any) -> Any:
        return _split_metadata(tree)

    @field_validator("metadata_types")
    @classmethod
    def _types_are_known(cls, types: dict[str, str]) -> dict[str, str]:
        return {name: type_alias(given) for name, given in types.items()}

    def source_of(self, name: str) -> str:
        """Returns the input's column that a metadata column is read from."""
        return self.metadata_sources.get(name, name)


class CsvConfig(Model):
    """Describes the CSV and TSV dialect, if file names and first lines do not determine it."""

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """None: a tab in `.tsv`; else the first of comma, semicolon, tab, bar that splits the header so that the text
    column is in it."""
    names: tuple[str, ...] | None = None
    """Columns of files without a header line, as MS MARCO's `collection.tsv`: `[id, text]`."""
    quote: str | None = Field("auto", min_length=1)
    """One character, `auto` or null (values are never quoted). auto: `"`, and in TSV files, where most programs do not
    quote at all, only around whole values."""

    @field_validator("delimiter", mode="before")
    @classmethod
    def _delimiter_has_a_name(cls, value: Any) -> Any:
        return {"\\t": "\t", "tab": "\t"}.get(value, value) if isinstance(value, str) else value

    @field_validator("quote")
    @classmethod
    def _quote_is_a_character(cls, value: str | None) -> str | None:
        if value is not None and value != "auto" and len(value) != 1:
            raise ValueError(f"must be one character, auto or null, got {value!r}")
        return value


class PictureConfig(Model):
    """Configures pictures beside texts, for `picture_weights` embedders; a row may lack text or picture, not both."""

    column: str
    """Holds encoded pictures, or where they are: paths (relative ones: to the file that names them) or URIs."""
    thumbnail: int = Field(160, ge=0)
    """Longer side, in pixels, of the JPEG kept in the column `thumbnail`; 0 keeps none. Pixels are never stored."""
    max_pixels: int = Field(64 * 10**6, gt=0)
    """A larger picture goes to quarantine, without being decoded."""
    max_bytes: int = Field(256 * 2**20, gt=0)
    """So does one whose file is longer."""


def _one_or_more(value: Any) -> Any:
    """Wraps a single text in a list."""
    return (os.fspath(value),) if isinstance(value, (str, os.PathLike)) else value


class InputConfig(Model):
    paths: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(min_length=1)
    """Files, folders, globs or URIs (s3://, gs://, az://, any that fsspec or pyarrow opens); one or a list."""
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "arrow", "orc", "avro", "text", "document", "lance"] = (
        "auto"
    )
    """auto: by the files' names. jsonl reads arrays and objects over several lines, too."""
    encoding: str = "auto"
    """Of JSON, CSV and text files. auto: UTF-8, or UTF-16 or UTF-32 if the first bytes are their mark."""
    csv: CsvConfig = CsvConfig()
    """How CSV and TSV files are written."""
    columns: Columns = Columns()
    """Which columns hold id, text and title, and which others are kept."""
    template: str = "{title} {text}"
    """How title and text are joined where there is a title; a text without one stands alone."""
    max_text_bytes: int = Field(64 * 2**20, gt=0)
    """A longer text goes to quarantine."""
    pictures: PictureConfig | None = None
    """Pictures beside the texts."""
    storage_options: dict[str, SecretStr] = {}
    """Credentials, endpoint and region of the object store, as its client names them; never shown or stored."""
    label: str | None = None
    """What the index calls the files, instead of their paths: rows that were handed over in memory lie in a file that
    is gone afterwards."""

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, name: str) -> str:
        try:
            return name if name == "auto" else codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"no encoding is called {name!r}") from None

    @model_validator(mode="before")
    @classmethod
    def _pictures_are_read(cls, tree: Any) -> Any:
        """Adds the picture column to the metadata columns that are read."""
        if not isinstance(tree, dict) or not isinstance(tree.get("pictures"), dict):
            return tree
        columns, column = tree.get("columns") or {}, tree["pictures"].get("column")
        if not isinstance(columns, dict):
            return tree
        columns = _split_metadata(columns)
        if column in columns.get("metadata", ()):
            return tree
        return {**tree, "columns": {**columns, "metadata": [*columns.get("metadata", ()), column]}}

    @model_validator(mode="after")
    def _pictures_are_kept(self) -> InputConfig:
        if self.pictures is not None and self.pictures.column not in self.columns.metadata:
            raise ValueError(f"columns.metadata must hold {self.pictures.column!r}, the column of the pictures")
        return self


class ChunkConfig(Model):
    mode: Literal["auto", "tokens", "whole"] = "auto"
    """tokens: a document that is longer than `size` tokens becomes several rows. whole: one row a document, truncated
    to the model's length. auto: tokens, or whole where there are pictures."""
    size: AutoInt = "auto"
    """Tokens of a window, special tokens not counted. auto: what the first embedder takes."""
    overlap: AutoInt = "auto"
    """Tokens that neighbouring windows share. auto: an eighth of `size`."""
    boundaries: Boundaries | Literal["auto"] = "auto"
    """Where windows end and begin if there is such a place near: at paragraphs, headings and sentences, or at words
    alone. auto: sentences for a new index, and for one that exists what it was built with."""

    @field_validator("size", "overlap")
    @classmethod
    def _in_range(cls, value: int | str, info: ValidationInfo) -> int | str:
        least = 1 if info.field_name == "size" else 0
        if isinstance(value, int) and value < least:
            raise ValueError(f"must be auto or at least {least}, got {value}")
        return value

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> ChunkConfig:
        if isinstance(self.overlap, int) and isinstance(self.size, int) and self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than size ({self.size})")
        return self

    def window(self, room: int) -> Window | None:
        """Returns the chunking window for a model's maximum length in tokens; None if documents are not chunked."""
        if self.mode == "whole":
            return None
        size = room if self.size == "auto" else self.size
        overlap = min(size - 1, size // 8 if self.overlap == "auto" else self.overlap)
        return Window(size, overlap, "words" if self.boundaries == "auto" else self.boundaries)


class ComputeConfig(Model):
    dtype: DType = "auto"
    """Precision of the forward pass. fp32 is exact; auto takes bf16 where the hardware multiplies it, else fp32.

    int8 multiplies in 8 bits: BERT and XLM-RoBERTa embedders, on a CPU, for processors with VNNI.
    """
    budget: AutoInt = "auto"
    """Tokens in one forward pass."""
    compile: bool | Literal["auto"] = False
    """Compile the model with torch.compile, which pays in long jobs; auto decides from the device."""
    threads: AutoInt = "auto"
    """CPU threads of one actor; auto leaves torch's own choice."""
    device: str | None = None
    """`cpu`, `cuda:0` ...; None takes the first accelerator, else the CPU."""

    def spec(self) -> ComputeSpec:
        given: dict[str, Any] = {name: None if value == "auto" and name != "dtype" else value for name, value in self}
        return ComputeSpec(**given)


class PoolConfig(Model):
    """Sets the size and resources of one embedder's actor pool."""

    num_cpus: float = Field(1, ge=0)
    """CPUs of one actor."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of one actor; a fraction shares one."""
    min_size: int = Field(1, gt=0)
    """Fewest actors."""
    max_size: AutoInt = "auto"
    """auto: as many actors as the cluster's free CPUs or GPUs hold when the job starts."""
    accelerator_type: str | None = None
    """Only on nodes with this accelerator, as Ray names it (`H100`)."""
    batch_rows: int = Field(1000, gt=0)
    """Rows that travel to an actor at once; the forward pass has its own token budget."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> PoolConfig:
        if self.max_size != "auto" and self.max_size < self.min_size:
            raise ValueError(f"max_size ({self.max_size}) is smaller than min_size ({self.min_size})")
        return self

    def spec(self) -> PoolSpec:
        return PoolSpec(
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            min_size=self.min_size,
            max_size=None if self.max_size == "auto" else self.max_size,
            accelerator_type=self.accelerator_type,
        )


class CodecConfig(Model):
    dense: Literal["float32", "float16"] = "float32"
    """Type of the stored dense vectors."""
    colbert: CodecName | None = None
    """None: `rotated_sign` for the packaged model, where it loses next to nothing, `float16` for all others."""
    colbert_pooling: TokenPooling = "none"
    """Fewer ColBERT vectors per document: means of 2 or 3 neighbours, or one vector per distinct token."""
    sparse: SparseWeighting | None = None
    """None: `counted` for the packaged model, `max`, M3's own, for all others (`actors.codecs.sparse_weighting`)."""


CONFIGURED_OTHERWISE = frozenset({"passage_max_length", "compute"})
"""Fields of EmbedderSpec that EmbedderConfig declares itself: as `max_length`, and as a section with `auto` values."""


def _spec_fields() -> dict[str, Any]:
    """Derives config fields from EmbedderSpec: name, type, default, lower bound."""
    types, meanings = get_type_hints(EmbedderSpec), attribute_docstrings(EmbedderSpec)
    derived = (f for f in dataclasses.fields(EmbedderSpec) if f.name not in CONFIGURED_OTHERWISE)
    return {
        f.name: (
            types[f.name],
            Field(
                ... if f.default is dataclasses.MISSING else f.default,
                gt=f.metadata.get("gt"),
                description=meanings.get(f.name),
            ),
        )
        for f in derived
    }


if TYPE_CHECKING:

    class _SpecFields(Model, EmbedderSpec): ...
else:
    _SpecFields = create_model("_SpecFields", __base__=Model, **_spec_fields())


class EmbedderConfig(_SpecFields):
    """Configures one embedder of an index: the fields of `EmbedderSpec`, output storage and the actor pool.

    Leaves out the fields of CONFIGURED_OTHERWISE.
    """

    name: str = "minilm"
    """Prefix of this embedder's columns."""
    model: str = DEFAULT_MODEL
    """A catalogue name, a hub id or a folder."""
    cosine_as_dot: bool = True
    """Normalise dense vectors where the checkpoint's own library compares them by cosine. An index that was built
    without it keeps its vectors as they are."""
    outputs: tuple[Output, ...] | None = None
    """None: every output that the model has."""
    max_length: int | None = Field(None, gt=0)
    """Tokens kept of a passage, special tokens included; None: what the model takes."""
    compute: ComputeConfig = ComputeConfig()  # type: ignore[assignment]  # a section of its own, see spec()
    """How the forward pass runs."""
    pool: PoolConfig = PoolConfig()
    """Size and resources of its actors."""
    codec: CodecConfig = CodecConfig()
    """How its outputs are stored."""

    @field_validator("name")
    @classmethod
    def _name_is_a_column_prefix(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name must match [a-z][a-z0-9_]*, got {name!r}")
        return name

    @property
    def colbert_codec(self) -> CodecName:
        return self.codec.colbert or ("rotated_sign" if self.model == DEFAULT_MODEL else "float16")

    @property
    def sparse_codec(self) -> SparseWeighting:
        return self.codec.sparse or ("counted" if self.model == DEFAULT_MODEL else "max")

    def spec(self) -> EmbedderSpec:
        """Builds the spec of the model that this entry configures."""
        names = {f.name for f in dataclasses.fields(EmbedderSpec)} - CONFIGURED_OTHERWISE
        length = self.max_length or (TEXT_BESIDE_PICTURE if self.picture_weights else None)
        given = {name: getattr(self, name) for name in names}
        return EmbedderSpec(**given, passage_max_length=length, compute=self.compute.spec())


class IndexConfig(Model):
    uri: str = Field(min_length=1)
    """Folder or URI of the index."""
    table: str = "documents"
    """Name of the LanceDB table."""
    storage_options: dict[str, SecretStr] = {}
    """Credentials, endpoint and region of the object store, as its client names them; never shown or stored."""
    full_text: bool = True
    """Build Lance's full-text index over the text at the end of a job: the bm25 channel."""
    commit_fragments: int = Field(16, gt=0)
    """Commit after this many fragments ..."""
    commit_seconds: float = Field(60, gt=0)
    """... or this many seconds, whichever comes first."""
    fragment_bytes: int = Field(64 * 2**20, gt=0)
    """Size of a fragment that a worker writes, about."""


class JobConfig(Model):
    id: str = "build"
    """Names the lease: a second driver with the same index is refused while the first one lives."""
    quarantine_limit: float = Field(0.05, ge=0, le=1)
    """The job stops when more than this share of the rows read has gone to quarantine (after the first 1,000 rows)."""
    prune: bool = False
    """Remove documents from the index that are no longer in the input."""
    prune_limit: float = Field(1, ge=0, le=1)
    """Refuse to remove more than this share of the documents (ten are always allowed)."""
    drop_columns: tuple[str, ...] = ()
    """Metadata columns of the index to drop; without this, a job that lacks a column of the index is refused."""
    lease_seconds: float = Field(60, gt=0)
    """A driver that has not renewed its lease for so long counts as dead, and the next one may take over."""


class RayConfig(Model):
    address: str | None = None
    """None: `RAY_ADDRESS` if set, else a local Ray that ends with the job."""
    num_cpus: int | None = None
    """CPUs of a Ray that is started here; None: all of the machine."""
    progress: bool = True
    """Show what the job does on stderr."""


class SearchDefaults(Model):
    """Configures what a search of the index takes unless told otherwise; stored with the index."""

    channels: dict[str, str] = {}
    """The embedder behind each output, `{dense: qwen, sparse: splade, colbert: late}`; empty: one embedder at a time,
    or the only one with each output."""


class BuildConfig(Model):
    input: InputConfig
    """What is read."""
    index: IndexConfig
    """What is written."""
    chunk: ChunkConfig = ChunkConfig()
    """How long documents are cut."""
    embedders: tuple[EmbedderConfig, ...] = (EmbedderConfig(),)
    """The models; each has columns of its own."""
    search: SearchDefaults = SearchDefaults()
    """What a search takes unless told otherwise."""
    job: JobConfig = JobConfig()
    """The lease, the quarantine's limit, pruning."""
    ray: RayConfig = RayConfig()
    """Which Ray runs the job."""

    @field_validator("embedders")
    @classmethod
    def _names_differ(cls, embedders: tuple[EmbedderConfig, ...]) -> tuple[EmbedderConfig, ...]:
        names = [e.name for e in embedders]
        if not names:
            raise ValueError("at least one embedder is needed")
        if len(set(names)) < len(names):
            raise ValueError(f"embedder names must differ, got {names}")
        return embedders

    @model_validator(mode="after")
    def _pictures_have_a_model(self) -> BuildConfig:
        if self.input.pictures is None:
            return self
        if self.chunk.mode == "tokens":
            raise ValueError("chunk.mode must be whole where input.pictures is set: a picture has one vector")
        if not any(e.picture_weights for e in self.embedders):
            raise ValueError("input.pictures needs an embedder with picture_weights")
        return self

    @model_validator(mode="after")
    def _chunks_fit(self) -> BuildConfig:
        size = self.chunk.size
        for i, e in enumerate(self.embedders):
            if self.chunk.mode != "whole" and size != "auto" and e.max_length is not None and size + 2 > e.max_length:
                raise ValueError(
                    f"chunk.size ({size}) plus special tokens exceeds "
                    f"embedders.{i}.max_length ({e.max_length}): every chunk would be truncated"
                )
        return self

    @property
    def chunking(self) -> ChunkConfig:
        """Returns `chunk` with its mode resolved."""
        mode = "tokens" if self.input.pictures is None else "whole"
        return self.chunk.model_copy(update={"mode": mode}) if self.chunk.mode == "auto" else self.chunk


def plain_options(options: Mapping[str, SecretStr]) -> dict[str, str]:
    """Reveals the secrets of storage options, for the clients that need them; never log or store the result."""
    return {key: value.get_secret_value() for key, value in options.items()}
