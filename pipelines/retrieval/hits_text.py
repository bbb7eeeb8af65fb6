"""Formats hits for a terminal: two aligned lines each, at the terminal's width, in colour if wanted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.retrieval.hits import Hit, Hits

BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "\x02", "\x03"
"""Stand for the ends of a mark while a line is wrapped: they are as good as no width."""
INDENT = 5


def shorten(text: str, length: int) -> str:
    """Cuts a text to one line of at most `length` characters, at a word boundary."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length].rsplit(" ", 1)[0] + " …"


def terminal_width() -> int:
    """Returns the terminal's width, at most 120; 80 without a terminal."""
    return min(120, shutil.get_terminal_size((80, 24)).columns)


def hits_as_text(hits: Hits, width: int = 80, colour: bool = False, columns: Sequence[str] = ()) -> str:
    """Returns a heading and two lines per hit: scores, id and place under the heading's names, then the passage.

    columns: metadata columns, shown on a third line.
    """
    counted = f"{len(hits)} hit{'s' * (len(hits) != 1)} for {hits.query!r} ({hits.mode})"
    if not len(hits):
        return counted
    names = ("score", *hits[0].scores)
    heading = " " * INDENT + "".join(f"{name:>8}" for name in names) + "  document"
    lines = [line for hit in hits for line in _format_hit(hit, width, colour, columns)]
    return "\n".join([counted, _apply_style(heading, DIM, colour), *lines])


def _format_hit(hit: Hit, width: int, colour: bool, columns: Sequence[str]) -> Iterator[str]:
    numbers = "".join(f"{score:8.3f}" for score in (hit.score, *hit.scores.values()))
    room = width - INDENT - len(numbers) - len(hit.chunk_id) - 4
    yield f"{hit.rank:>{INDENT}}{numbers}  {_apply_style(hit.chunk_id, BOLD, colour)}  {_fit_place(hit, room)}".rstrip()
    yield " " * INDENT + _format_passage(hit, width - INDENT, colour)
    shown = [f"{name}: {hit.metadata[name]}" for name in columns if name in hit.metadata]
    if shown:
        yield " " * INDENT + shorten("  ".join(shown), width - INDENT)


def _fit_place(hit: Hit, room: int) -> str:
    """Names the source's file and line, as far as the width allows."""
    if not hit.source:
        return ""
    place = hit.source.rpartition("/")[2] + ("" if hit.line is None else f":{hit.line}")
    return place if len(place) <= room else f"…{place[len(place) - room + 1 :]}" if room > 8 else ""


def _format_passage(hit: Hit, width: int, colour: bool) -> str:
    """Returns the part of the passage with most matches, on one line, without breaking a word."""
    words = hit.passage.marked(OPEN, CLOSE).split(" ")
    starts = [i for i, word in enumerate(words) if OPEN in word] or [0]
    first = max(starts, key=lambda i: (_fill_line(words, i, width).count(OPEN), -i))
    while first > 0 and len(_plain(" ".join(words[first - 1 :]))) <= width:
        first -= 1
    line = _fill_line(words, first, width)
    if colour and line.count(OPEN) > line.count(CLOSE):
        line += CLOSE
    return line.replace(OPEN, BOLD).replace(CLOSE, RESET) if colour else _plain(line)


def _fill_line(words: Sequence[str], first: int, width: int) -> str:
    """Returns as many leading words as fit, with dots in place of words that are left out."""
    line = "… " if first else ""
    for last in range(first, len(words)):
        more = "" if last + 1 == len(words) else " …"
        if last > first and len(_plain(line + words[last] + more)) > width:
            return f"{line.rstrip()} …"
        line += words[last] + " "
    return line.rstrip()


def _plain(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")


def _apply_style(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{RESET}" if colour else text
