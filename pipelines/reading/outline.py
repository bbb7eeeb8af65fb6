"""Finds the headings and the page of a position in a document, from its text alone.

Headings are Markdown's, which all converters write. A form feed ends a page of a PDF; a comment with a number, as
markitdown writes it, begins a slide.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TypeVar

_HEADING = re.compile(r"^(#{1,6})[ \t]+(\S.*?)[ \t]*#*$", re.MULTILINE)
_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->")
_BLANK = re.compile(r"(?:\s|<!--.*?-->)*", re.DOTALL)
SEPARATOR = " > "
T = TypeVar("T", int, str)


@dataclass(frozen=True, slots=True)
class Outline:
    """Holds the headings and pages of one document, by their character offsets."""

    text: str
    headings: tuple[tuple[int, str], ...]
    """First character, and the headings from there on, the outermost first."""
    pages: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str) -> Outline:
        """Parses the headings and pages of a document's text."""
        path: list[tuple[int, str]] = []
        headings = []
        for found in _HEADING.finditer(text):
            level = len(found[1])
            path = [*((depth, title) for depth, title in path if depth < level), (level, found[2])]
            headings.append((found.start(), SEPARATOR.join(title for _, title in path)))
        return cls(text, tuple(headings), _pages(text))

    def place(self, start: int) -> dict[str, str | int | None]:
        """Returns `heading` and `page` at a character offset, skipping blanks after it; None if there is none."""
        blank = _BLANK.match(self.text, start)
        at = start if blank is None else blank.end()
        heading, page = _last(self.headings, at), _last(self.pages, at)
        return {"heading": heading, "page": page}


def _pages(text: str) -> tuple[tuple[int, int], ...]:
    slides = tuple((found.start(), int(found[1])) for found in _SLIDE.finditer(text))
    if slides:
        return slides
    ends = [found.end() for found in re.finditer("\f", text)]
    return tuple((start, number) for number, start in enumerate([0, *ends], 1)) if ends else ()


def _last(places: tuple[tuple[int, T], ...], at: int) -> T | None:
    i = bisect_right(places, at, key=lambda place: place[0]) - 1
    return places[i][1] if i >= 0 else None
