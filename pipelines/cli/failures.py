"""Describes failures of the user's machine, network or files in one line; bugs keep their traceback.

Ray wraps what a worker raises, and Lance ends its messages with places in its own sources: both are taken off.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

from actors.source_positions import remove_source_positions

SHOW_TRACEBACK = "TRIDEX_TRACEBACK"
"""Environment variable: where it is set, every failure keeps its traceback."""

RAY_FAILURES = {
    "OutOfMemoryError": "a machine of the cluster ran out of memory",
    "WorkerCrashedError": "a worker process died",
    "ActorDiedError": "an actor died",
    "ActorUnavailableError": "an actor cannot be reached",
    "NodeDiedError": "a machine of the cluster went away",
    "ObjectStoreFullError": "Ray's object store is full",
    "OutOfDiskError": "the disk that Ray spills to is full",
    "RaySystemError": "Ray failed",
    "AuthenticationError": "the Ray cluster requires a token that is missing or wrong",
    "ObjectLostError": "a machine of the cluster went away",
    "OwnerDiedError": "a process of the cluster went away",
}
"""Classes of Ray, by their names so that Ray is not imported, to what happened."""
_NO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_WRITE_WORDS = ("Permission denied", "Read-only file system")
_DISK_FULL = "No space left on device"


def describe_failure(error: BaseException) -> str | None:
    """Describes an expected error in one line; None for a bug."""
    if os.environ.get(SHOW_TRACEBACK):
        return None
    return next((line for cause in causes(error) if (line := _line(cause)) is not None), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the errors that it wraps, the innermost first."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        inner = getattr(found, "cause", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__
    yield from reversed(chain)


def _line(error: BaseException) -> str | None:
    text = plain_message(error)
    if isinstance(error, OSError):
        return _os_line(error, text)
    if isinstance(error, MemoryError):
        return f"out of memory: {text}".rstrip(": ")
    if type(error).__module__.startswith("ray."):
        happened = next((RAY_FAILURES[c.__name__] for c in type(error).__mro__ if c.__name__ in RAY_FAILURES), None)
        return _worker_line(error) if happened is None else f"{happened}: {text}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"out of memory on the device: {text}"
    return _os_line(None, text) if "LanceError(IO)" in text or "Generic LocalFileSystem error" in text else None


def _worker_line(error: BaseException) -> str | None:
    """Finds a full disk or a missing permission in the traceback of a worker, which is all that Ray keeps of an error
    that a user function of Ray Data raised; None for any other traceback."""
    lines = (line.strip() for line in reversed(str(error).splitlines()))
    found = next((line for line in lines if any(words in line for words in (_DISK_FULL, *_NO_WRITE_WORDS))), None)
    return None if found is None else _os_line(None, _without_positions(found))


def _os_line(error: OSError | None, text: str) -> str:
    code = None if error is None else error.errno
    if code == errno.ENOSPC or _DISK_FULL in text:
        return f"the disk is full: {text}"
    if code in _NO_WRITE or any(words in text for words in _NO_WRITE_WORDS):
        return f"no permission: {text}"
    return text


def plain_message(error: BaseException) -> str:
    """Returns an error's first line without source positions of other programs."""
    text = str(error).strip() or type(error).__name__
    if type(error).__module__.startswith("ray.") and "Traceback" in text:
        text = text.rstrip().rpartition("\n")[2]
    return _without_positions(text)


def _without_positions(text: str) -> str:
    """Removes positions in Rust sources and line breaks, and cuts what is longer than 500 characters."""
    text = remove_source_positions(" ".join(text.split()))
    return text if len(text) <= 500 else f"{text[:497]}..."


def is_closed_pipe(error: BaseException) -> bool:
    """Returns whether the reader of the output has closed the pipe, as in `tridex ... | head`."""
    return isinstance(error, BrokenPipeError) and not sys.stdout.closed
