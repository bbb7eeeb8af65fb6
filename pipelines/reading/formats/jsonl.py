"""Reads JSON Lines, plain or compressed; each line is parsed separately, so a bad line loses only itself.

Files that hold arrays, or objects over several lines, are read value by value by the same parser; damage there costs
the rest of the file. Arrow's JSON reader is several times faster but fails a whole block for one malformed line or one
mixed column; an embedder is a hundred times slower than either. A large plain file of lines is split at line ends; a
compressed one cannot be, nor one in UTF-16.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.config import is_utf8
from pipelines.reading.compression import as_utf8, codec_of, sniff_encoding
from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import (
    Inspection,
    Part,
    RawRows,
    ReadOptions,
    group_into_batches,
    look_up,
    raise_after_good_rows,
    to_storable,
)

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 2**20
SEEK_BYTES = 2**16
MIN_PART_BYTES = 8 * 2**20
"""A file that is not split keeps its plain line numbers, and reading 8 MiB takes a fraction of a second."""
HEAD_BYTES = 2**16
"""Bytes inspected to distinguish JSON Lines from arrays and from objects over several lines."""
READ_CHARS = 2**18

Row = tuple[int, int, "Mapping[str, Any] | str"]
_DECODER = json.JSONDecoder()


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Splits a file at line ends; infers columns and types from the first 1,000 rows or 1 MiB."""
    parts = _parts(file, part_bytes, options.encoding)
    return Inspection(parts, sample_schema(_sample(file, options), options.paths))


def _parts(file: File, part_bytes: int, encoding: str) -> tuple[Part, ...]:
    part_bytes = max(part_bytes, MIN_PART_BYTES)
    if codec_of(file.name) is not None or file.size < 2 * part_bytes:
        return (Part(size=file.size),) if file.size else ()
    with file.open() as handle:
        head = handle.read(HEAD_BYTES)
        encoding = sniff_encoding(head) if encoding == "auto" else encoding
        if encoding != "utf-8" or not is_lines(head):
            return (Part(size=file.size),)
        cuts = [_line_start(handle, at, file.size) for at in range(part_bytes, file.size, part_bytes)]
    bounds = sorted({0, *cuts, file.size})
    return tuple(Part(start, stop, size=stop - start) for start, stop in itertools.pairwise(bounds))


def _line_start(handle: pa.NativeFile, at: int, size: int) -> int:
    """Returns the offset of the first byte after the line end at or after `at - 1`."""
    at -= 1
    while at < size:
        handle.seek(at)
        block = handle.read(SEEK_BYTES)
        found = block.find(b"\n")
        if found >= 0:
            return int(at + found + 1)
        at += len(block)
    return size


def is_lines(head: bytes) -> bool:
    """Returns whether a file's beginning holds one value per line, not arrays or objects over several lines."""
    text = head.decode("utf-8-sig", "replace").lstrip()
    line, newline, _ = text.partition("\n")
    if line.startswith("["):
        value = _first_value(line)
        return bool(newline and value is not None and not _holds_objects(value))
    if not line.startswith("{") or not newline or _first_value(line) is not None:
        return True
    return line.rstrip() != "{" and _first_value(text) is None and not _is_incomplete(text)


def _first_value(text: str) -> Any:
    """Parses the JSON value at the start of a text; None if it is incomplete."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _is_incomplete(text: str) -> bool:
    """Returns whether a text may be the beginning of an incomplete JSON value."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        in_string = error.msg.startswith("Unterminated") and "\n" not in text[error.pos :]
        return in_string or error.pos >= len(text.rstrip())
    except (ValueError, RecursionError):  # Python reads no integer of more than 4,300 digits
        return False
    return False


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _sample(file: File, options: ReadOptions) -> list[Mapping[str, Any]]:
    """Returns the parseable rows at the beginning; none if the file cannot be opened."""
    found: list[Mapping[str, Any]] = []
    seen = 0
    try:
        with as_utf8(file.stream(), options.encoding) as stream:
            for _, n_bytes, row in itertools.islice(_parse(stream, None, SAMPLE_BYTES), SAMPLE_ROWS):
                seen += n_bytes
                if not isinstance(row, str):
                    found.append(row)
                if seen >= SAMPLE_BYTES:
                    break
    except READ_ERRORS:
        return found
    return found


def sample_schema(rows: Sequence[Mapping[str, Any]], paths: Sequence[str] = ()) -> pa.Schema | None:
    """Infers columns and types from some rows; `paths` into nested objects come after the columns."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if is_utf8(name)]
    names += [path for path in paths if path not in names and any(look_up(row, path) is not None for row in rows)]
    fields = [pa.field(name, _type_of([to_storable(look_up(row, name)) for row in rows])) for name in names]
    return pa.schema(fields) if fields else None


def _type_of(values: Sequence[Any]) -> pa.DataType:
    """Returns the common type of values; string for mixed types."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, UnicodeError, OverflowError):
        return pa.string()


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields a part's rows in batches."""
    whole = part.stop < 0
    with as_utf8(file.stream(), options.encoding) if whole else file.stream_from(part.start) as stream:
        length = None if whole else part.stop - part.start
        # A text of `max_bytes` bytes can be twice as long with its quotes and backslashes escaped.
        parsed = _parse(stream, length, 2 * options.max_bytes + 2**20)
        yield from raise_after_good_rows(parsed, lambda good: group_into_batches(good, columns, batch_rows))


def _parse(stream: io.BufferedReader, length: int | None, longest: int) -> Iterator[Row]:
    """Yields (row, bytes, object or error) per row of a file, or of `length` bytes of lines."""
    if length is not None:
        return _parse_lines(stream, length, longest)
    lines = is_lines(stream.peek(HEAD_BYTES))
    return _parse_lines(stream, None, longest) if lines else _parse_values(stream, longest)


def _parse_lines(stream: io.BufferedReader, length: int | None, longest: int) -> Iterator[Row]:
    """Yields each non-blank line parsed; blank lines count as rows."""
    at = position = 0
    while length is None or at < length:
        line, n_bytes = _read_line(stream, longest)
        if not n_bytes:
            return
        if line is None:
            yield position, 0, f"line has {n_bytes:,} bytes, more than {longest:,} are not read"
        elif position == 0:
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield position, n_bytes, _parse_line(line, first=True)
        elif not line.isspace():
            yield position, n_bytes, _parse_line(line, first=False)
        at += n_bytes
        position += 1


def _read_line(stream: io.BufferedReader, longest: int) -> tuple[bytes | None, int]:
    """Reads the next line and its size in bytes; an overlong line is skipped to its end and returned as None."""
    line = stream.readline(longest)
    if len(line) < longest or line.endswith(b"\n"):
        return line, len(line)
    n_bytes = len(line)
    while rest := stream.readline(2**20):
        n_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return None, n_bytes


def _parse_line(line: bytes, first: bool) -> Mapping[str, Any] | str:
    try:
        row = _DECODER.decode(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return f"line is not valid UTF-8: byte {error.start} of the line: {error.reason}"
    except (ValueError, RecursionError) as error:
        return f"line is not JSON: {error}"
    return row if isinstance(row, dict) else f"line is a JSON {type(row).__name__}, an object is needed"


def _parse_values(stream: io.BufferedReader, longest: int) -> Iterator[Row]:
    """Yields the objects in a sequence of objects and arrays; OSError if the rest cannot be parsed."""
    for position, (value, n_bytes) in enumerate(_values(stream, longest)):
        if isinstance(value, dict):
            yield position, n_bytes, value
        else:
            yield position, n_bytes, f"value is a JSON {type(value).__name__}, an object is needed"


def _values(stream: io.BufferedReader, longest: int) -> Iterator[tuple[Any, int]]:
    """Yields top-level values and the items of top-level arrays, with their lengths."""
    text, at, in_array = _Text(stream), 0, False
    decoder = json.JSONDecoder()
    while True:
        at = text.skip_blanks(at, ", \t\r\n" if in_array else " \t\r\n")
        head = text.buffer[at : at + 1]
        if not head:
            if in_array:
                raise OSError("the JSON array has no end")
            return
        if head in "[]" and in_array != (head == "["):
            in_array, at = head == "[", at + 1
            continue
        value, end = text.decode(decoder, at, longest)
        yield value, end - at
        at = text.drop(end)


class _Text:
    """Buffers decoded text of a stream, reading on demand."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._ended = stream, False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer = ""

    def _read_on(self, size: int = READ_CHARS) -> bool:
        data = b"" if self._ended else self._stream.read1(size)
        self._ended = not data
        self.buffer += self._decoder.decode(data, final=self._ended)
        return not self._ended

    def skip_blanks(self, at: int, blanks: str) -> int:
        """Returns the position of the next character that is not one of these."""
        while True:
            while at < len(self.buffer) and self.buffer[at] in blanks:
                at += 1
            if at < len(self.buffer) or not self._read_on():
                return at

    def decode(self, decoder: json.JSONDecoder, at: int, longest: int) -> tuple[Any, int]:
        """Parses the value at a position, reading on until it is complete."""
        size = READ_CHARS
        while True:
            try:
                value, end = decoder.raw_decode(self.buffer, at)
                if end < len(self.buffer) or isinstance(value, (dict, list, str)) or not self._read_on():
                    return value, end
            except (ValueError, RecursionError) as error:
                if len(self.buffer) - at > longest or not self._read_on(size):
                    raise OSError(f"not JSON after character {at}: {error}") from error
                size *= 2  # a long value is parsed again a logarithmic number of times

    def drop(self, end: int) -> int:
        """Discards parsed text once it is long; returns the new position of `end`."""
        if end < READ_CHARS:
            return end
        self.buffer = self.buffer[end:]
        return 0
