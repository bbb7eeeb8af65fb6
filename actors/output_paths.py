"""Holds the one rule for what a command writes: nothing that exists is overwritten without `--force`.

Every file or folder that a command is told to write passes one of the two functions before any work starts: run files,
search configs, models, the demo's folder.
"""

from __future__ import annotations

from pathlib import Path


class OutputExists(ValueError):
    """Signals that an output exists already; the message names it and the ways on."""


def refuse_file(path: str | Path, *, force: bool = False, name: str = "output") -> None:
    """Raises OutputExists where a file is to be written and there is one, unless `force`, or a folder.

    name: what the message calls the path.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputExists(f"{name} {path} is a folder; name a file")
    if path.exists() and not force:
        raise OutputExists(f"{name} {path} exists; --force replaces it")


def refuse_folder(path: str | Path, *, marker: str | None = None, name: str = "output") -> None:
    """Raises OutputExists where a folder is to be written and there is a file, or a folder with something in it.

    marker: name of a file that marks the folder as made by tridex, which may then be used again. A folder is never
    emptied for somebody: there is no `force`.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (marker and (path / marker).is_file()):
        raise OutputExists(f"{name} {path} exists and is not an empty folder; name another one, or remove it")
