"""Decompresses streams by the file name's suffix, and decodes UTF-16 and UTF-32.

Python's readers of gzip, bzip2 and xz, not Arrow's: they hand out all that comes before damage or padding at a file's
end, where Arrow's lose it. lz4 goes through Arrow; zstd through `zstandard`, because Arrow refuses frames of windows
beyond 128 MiB (`zstd --long=31`).
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib

import pyarrow as pa
import zstandard

SUFFIXES = {
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bz2",
    "xz": "xz",
    "lzma": "xz",
    "zst": "zstd",
    "zstd": "zstd",
    "lz4": "lz4",
}
"""Suffix to codec."""
PACKED = rf"(\.({'|'.join(SUFFIXES)}))?$"
"""End of a regular expression over names."""
DECOMPRESSION_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What damage raises beyond OSError and EOFError."""

READ_BYTES = 2**16
STREAM_BUFFER = 2**16
ARROW_BUFFER = 4096
"""A larger one is no faster (Arrow reads ahead itself), and all of it is lost when a compressed stream breaks off."""
MAX_WINDOW = 2**31
TRUNCATED = "Truncated compressed stream"


def codec_of(name: str) -> str | None:
    """Returns the codec of a file name's suffix; None if it is not compressed."""
    return SUFFIXES.get(name.lower().rpartition(".")[2])


def buffered(file: io.RawIOBase | pa.NativeFile, size: int = STREAM_BUFFER) -> io.BufferedReader:
    """Wraps a file in a buffer with `peek` and a fast `readline`."""
    return io.BufferedReader(file, size)


def decompress(file: pa.NativeFile, name: str) -> io.BufferedReader:
    """Opens a stream of the file's content, decompressed by the suffix of its name."""
    codec = codec_of(name)
    if codec == "gzip":
        return buffered(_Filled(_Closing(gzip.GzipFile(fileobj=file), file)))
    if codec == "bz2":
        return buffered(_Filled(_Closing(bz2.BZ2File(file), file)))
    if codec == "xz":
        return buffered(_Filled(_Closing(lzma.LZMAFile(file), file)))
    if codec == "zstd":
        return buffered(_Filled(_ZstdReader(file)))
    return buffered(file) if codec is None else buffered(_Filled(pa.CompressedInputStream(file, codec)), ARROW_BUFFER)


class _Filled(io.RawIOBase):
    """Fills every buffer, so that a `peek` sees a file's beginning even if its first compressed member is a few bytes.

    An error is raised by the read after the one that returns what precedes it.
    """

    def __init__(self, raw: io.RawIOBase | pa.NativeFile) -> None:
        self._raw = raw
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._error is not None:
            raise self._error
        filled = 0
        while filled < len(buffer):
            try:
                count = self._raw.readinto(buffer[filled:])
            except Exception as error:
                if not filled:
                    raise
                self._error = error
                break
            if not count:
                break
            filled += count
        return filled

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Closing(io.RawIOBase):
    """Closes the underlying file as well, and returns as many bytes per read as the decompressor has ready."""

    def __init__(self, stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, file: pa.NativeFile) -> None:
        self._stream, self._file = stream, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read1(len(buffer))
        except EOFError as error:
            raise OSError(TRUNCATED) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()


class _ZstdReader(io.RawIOBase):
    """Reads concatenated zstd frames; OSError if the last one is truncated."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._source = self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._data:
            self._source = self._source or self._file.read(READ_BYTES)
            if not self._source:
                if self._frame is not None:
                    raise OSError(TRUNCATED)
                return 0
            self._frame = self._frame or self._context.decompressobj()
            self._data = self._frame.decompress(self._source)
            self._source = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        n = min(len(buffer), len(self._data))
        buffer[:n], self._data = self._data[:n], self._data[n:]
        return n

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ZEROS = (
    (rb"[^\0]\0\0\0", "utf-32-le"),
    (rb"\0\0\0[^\0]", "utf-32-be"),
    (rb"[^\0]\0[^\0]\0", "utf-16-le"),
    (rb"\0[^\0]\0[^\0]", "utf-16-be"),
)
"""What the first four bytes look like where a text begins with two ASCII characters."""


def sniff_encoding(head: bytes) -> str:
    """Detects UTF-16 or UTF-32 by a file's byte order mark or zero bytes; otherwise returns UTF-8."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    return marked or next((name for zeros, name in _ZEROS if re.match(zeros, head[:4], re.DOTALL)), "utf-8")


def as_utf8(stream: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Returns the stream as UTF-8; `auto` detects the encoding from its first bytes. A UTF-8 byte order mark stays."""
    encoding = sniff_encoding(stream.peek(4)[:4]) if encoding == "auto" else encoding
    return stream if encoding == "utf-8" else buffered(_Filled(_Transcoder(stream, encoding)))


class _Transcoder(io.RawIOBase):
    """Transcodes a stream to UTF-8; UnicodeDecodeError if it is damaged."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._data, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._data and not self._ended:
            source = self._stream.read1(READ_BYTES)
            self._ended = not source
            self._data = self._decoder.decode(source, final=self._ended).encode("utf-8", "surrogatepass")
        n = min(len(buffer), len(self._data))
        buffer[:n], self._data = self._data[:n], self._data[n:]
        return n

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
