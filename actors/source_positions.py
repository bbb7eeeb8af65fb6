"""Removes places in Rust sources from error messages: Lance and tokenizers end theirs with one, which helps no user."""

from __future__ import annotations

import re

POSITION = re.compile(r",? ?(at )?/?[\w./~-]+\.rs:\d+(:\d+)?")


def remove_source_positions(text: str) -> str:
    """Returns the text without positions in Rust sources.

    >>> remove_source_positions("file a.lance is gone, /home/runner/lance/rust/src/io.rs:12:3")
    'file a.lance is gone'
    """
    return POSITION.sub("", text)
