"""Selects the data files of a folder and the format of each.

Data sets come with a README, a schema, queries or state files beside their shards, and sites with pictures: what is not
chosen is named as skipped, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors.extras import describe_missing
from pipelines.config import ConfigError, InputConfig
from pipelines.reading.compression import codec_of
from pipelines.reading.files import File
from pipelines.reading.formats import READERS, format_of
from pipelines.reading.listing import Listing, SkippedFile, count_by_kind

BESIDE_DATA = "a document beside data files; name it by itself to index it"
BINARY = ("parquet", "arrow", "orc", "avro", "lance", "document")
"""Formats whose files are of no other format, whatever the config states."""
NO_READER = "no reader for such files"
OTHER_FORMAT = "not of input.format"


def choose_formats(
    config: InputConfig, where: str, path: str, listing: Listing
) -> tuple[list[tuple[File, str]], list[SkippedFile]]:
    """Returns the files to read with their formats, and the rest; ConfigError if no format can be determined."""
    if config.format != "auto":
        return _select_format(str(config.format), where, listing)
    files, skipped = (list(listing.files), []) if listing.exact else set_layouts_aside(listing.files)
    told = [(file, format_of(file.name)) for file in files]
    known = [(file, format_) for file, format_ in told if format_ is not None]
    skipped += [SkippedFile(file.uri, NO_READER) for file, format_ in told if format_ is None]
    data = [(file, format_) for file, format_ in known if not READERS[format_].is_document]
    if data and len(data) < len(known):
        skipped += [SkippedFile(file.uri, BESIDE_DATA) for file, format_ in known if READERS[format_].is_document]
    chosen, without = _split_by_installed(data or known)
    if without and not chosen:
        raise ConfigError(f"{where}: {path!r}: {without[0].reason}")
    formats = sorted({format_ for _, format_ in data or chosen})
    if not chosen or (data and len(formats) > 1):
        problem = f"it holds {' and '.join(formats)}" if formats else _unknown_names(listing, skipped)
        raise ConfigError(f"{where}: {path!r}: {problem}; set input.format to one of {', '.join(READERS)}")
    return chosen, [*skipped, *without]


def _unknown_names(listing: Listing, skipped: Sequence[SkippedFile]) -> str:
    if listing.exact:
        return "its name does not tell the format"
    return f"no name in it tells the format ({'; '.join(map(str, count_by_kind(skipped)[:3]))})"


def _select_format(format_: str, where: str, listing: Listing) -> tuple[list[tuple[File, str]], list[SkippedFile]]:
    """Selects files whose names have the configured format's suffix; if none has, those that may be of any format."""
    if (missing := describe_missing_reader(format_)) is not None:
        raise ConfigError(f"{where}: {missing}")
    named = [file for file in listing.files if format_of(file.name) == format_]
    named = named or [file for file in listing.files if format_of(file.name) not in BINARY] or list(listing.files)
    rest = {file.uri for file in listing.files} - {file.uri for file in named}
    return [(file, format_) for file in named], [SkippedFile(uri, OTHER_FORMAT) for uri in sorted(rest)]


def _split_by_installed(files: Sequence[tuple[File, str]]) -> tuple[list[tuple[File, str]], list[SkippedFile]]:
    """Separates files whose readers are installed from the others."""
    missing = {format_: describe_missing_reader(format_) for format_ in {format_ for _, format_ in files}}
    chosen = [(file, format_) for file, format_ in files if missing[format_] is None]
    lacking = [(file, missing[format_]) for file, format_ in files]
    return chosen, [SkippedFile(file.uri, reason) for file, reason in lacking if reason is not None]


def describe_missing_reader(format_: str) -> str | None:
    """Describes the extra that a format needs and that is not installed; None if there is none."""
    extra = READERS[format_].extra
    return describe_missing(extra, f"reading {format_} files") if extra else None


BEIR = "queries or judgements beside BEIR's corpus.jsonl"
SAVED = "what `datasets` keeps beside its Arrow files"
_CORPUS = re.compile(r"corpus\.jsonl")
_QUERIES = re.compile(r"queries.*\.(jsonl|tsv)|qrels.*\.(tsv|txt)")
_SAVED = re.compile(r"state\.json|dataset_info\.json|dataset_dict\.json|cache-.*\.arrow")


def set_layouts_aside(files: Sequence[File]) -> tuple[list[File], list[SkippedFile]]:
    """Excludes the auxiliary files of known layouts: BEIR's queries and judgements, the state of `datasets`."""
    beir = {_folder(f) for f in files if _CORPUS.fullmatch(_unpacked(f.name))}
    judged = {_folder(f) for f in files if _QUERIES.fullmatch(_unpacked(f.name))}
    beir &= judged | {folder.removesuffix("/qrels") for folder in map(_folder, files) if folder.endswith("/qrels")}
    saved = {_folder(f) for f in files if f.name in ("dataset_info.json", "dataset_dict.json")}
    reasons = {f.path: reason for f in files if (reason := _layout_reason(f, beir, saved)) is not None}
    kept = [f for f in files if f.path not in reasons]
    return kept, [SkippedFile(f.uri, reasons[f.path]) for f in files if f.path in reasons]


def _layout_reason(file: File, beir: set[str], saved: set[str]) -> str | None:
    folder = _folder(file)
    in_qrels = folder.endswith("/qrels") and folder.removesuffix("/qrels") in beir
    if in_qrels or (folder in beir and _QUERIES.fullmatch(_unpacked(file.name))):
        return BEIR
    is_state = file.name == "dataset_infos.json" or (folder in saved and _SAVED.fullmatch(file.name) is not None)
    return SAVED if is_state else None


def _folder(file: File) -> str:
    return file.path.rpartition("/")[0]


def _unpacked(name: str) -> str:
    return name if codec_of(name) is None else name.rpartition(".")[0]
