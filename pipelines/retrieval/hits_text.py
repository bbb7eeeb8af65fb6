"""Prints hits for a terminal: two aligned lines each, at the terminal's width, with colour where it is wanted."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.retrieval.hits import Hit, Hits

BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "\x02", "\x03"
"""Stand for the ends of a mark while a line is wrapped: they are as good as no width."""
INDENT = 5


def shorten(text: str, length: int) -> str:
    """Returns one line of at most `length` characters, cut at a word."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length].rsplit(" ", 1)[0] + " …"


def terminal_width() -> int:
    """Returns the terminal's width, at most 120; 80 where there is no terminal."""
    return min(120, shutil.get_terminal_size((80, 24)).columns)


def hits_as_text(hits: Hits, width: int = 80, colour: bool = False, columns: Sequence[str] = ()) -> str:
    """Returns a heading and two lines per hit: its scores, id and place under the heading's names, then its passage.

    columns: metadata columns, shown on a third line.
    """
    counted = f"{len(hits)} hit{'s' * (len(hits) != 1)} for {hits.query!r} ({hits.mode})"
    if not len(hits):
        return counted
    names = ("score", *hits[0].scores)
    heading = " " * INDENT + "".join(f"{name:>8}" for name in names) + "  document"
    lines = [line for hit in hits for line in _lines(hit, width, colour, columns)]
    return "\n".join([counted, _style(heading, DIM, colour), *lines])


def _lines(hit: Hit, width: int, colour: bool, columns: Sequence[str]) -> Iterator[str]:
    numbers = "".join(f"{score:8.3f}" for score in (hit.score, *hit.scores.values()))
    room = width - INDENT - len(numbers) - len(hit.chunk_id) - 4
    yield f"{hit.rank:>{INDENT}}{numbers}  {_style(hit.chunk_id, BOLD, colour)}  {_place(hit, room)}".rstrip()
    yield " " * INDENT + _passage(hit, width - INDENT, colour)
    shown = [f"{name}: {hit.metadata[name]}" for name in columns if name in hit.metadata]
    if shown:
        yield " " * INDENT + shorten("  ".join(shown), width - INDENT)


def _place(hit: Hit, room: int) -> str:
    """Names the source's file and line, as far as there is room."""
    if not hit.source:
        return ""
    place = hit.source.rpartition("/")[2] + ("" if hit.line is None else f":{hit.line}")
    return place if len(place) <= room else f"…{place[len(place) - room + 1 :]}" if room > 8 else ""


def _passage(hit: Hit, width: int, colour: bool) -> str:
    """Returns the part of the passage around its first match, on one line, without breaking a word."""
    words = hit.passage.marked(OPEN, CLOSE).split(" ")
    first = next((i for i, word in enumerate(words) if OPEN in word), 0)
    while first > 0 and len(" ".join(words[first - 1 :])) <= width:
        first -= 1
    line = ("… " if first else "") + " ".join(words[first:])
    line = textwrap.shorten(line, width, placeholder=" …") if len(line) > width else line
    if colour and line.count(OPEN) > line.count(CLOSE):
        line += CLOSE
    return line.replace(OPEN, BOLD if colour else "").replace(CLOSE, RESET if colour else "")


def _style(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{RESET}" if colour else text
