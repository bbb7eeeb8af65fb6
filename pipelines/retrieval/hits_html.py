"""Renders hits for a notebook: one card each, the passage with marked matches, and a bar for each channel's score."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from pipelines.config.channels import colour_of
from pipelines.config.plain_json import plain_json
from pipelines.retrieval.hits_text import shorten

if TYPE_CHECKING:
    from pipelines.retrieval.hits import Hit, Hits

THUMBNAIL_STYLE = "max-width:160px;max-height:120px;border-radius:4px"
THUMBNAIL = "thumbnail"
"""Metadata column with a small JPEG, shown as a picture."""
MARK = "background:#b279a255;color:inherit;border-radius:3px"
"""Marks of a match: translucent, in the text's own colour, so that they can be read on light and dark pages."""


def hits_as_html(hits: Hits) -> str:
    best: dict[str, float] = {}
    for hit in hits:
        for name, score in hit.scores.items():
            best[name] = max(best.get(name, 0.0), score)
    rule = ", ".join(f"{c} {w:g}" for c, w in hits.weights.items())
    caption = f"{escape(hits.mode)}{f' · {escape(hits.fusion)} ({escape(rule)})' if hits.fusion else ''}"
    body = "".join(_render_card(hit, best) for hit in hits)
    empty = "<div style='color:#888;padding:8px 0'>nothing found</div>"
    return (
        "<div style='font-family:system-ui,sans-serif;max-width:860px;line-height:1.4'>"
        f"<div style='font-size:15px;font-weight:600'>{escape(hits.query)}</div>"
        f"<div style='font-size:12px;color:#888;margin-bottom:6px'>{len(hits)} hits · {caption}</div>"
        f"{body or empty}</div>"
    )


def _render_card(hit: Hit, best: Mapping[str, float]) -> str:
    bars = "".join(_render_bar(name, score, best[name]) for name, score in hit.scores.items())
    chips = "".join(
        f"<span style='font-size:11px;color:#888;margin-right:8px'>{escape(f'{key}: {shorten(str(value), 60)}')}</span>"
        for key, value in hit.metadata.items()
        if not isinstance(value, bytes)
    )
    pictures = "".join(
        f"<img src='data:image/jpeg;base64,{plain_json(value)}' style='{THUMBNAIL_STYLE}'>"
        for key, value in hit.metadata.items()
        if key == THUMBNAIL and isinstance(value, bytes)
    )
    return (
        "<div style='display:flex;gap:14px;border-top:1px solid #8884;padding:8px 0'>"
        f"<div style='min-width:26px;text-align:right;color:#888'>{hit.rank}</div>"
        f"{pictures}<div style='flex:1'><div><b>{escape(hit.chunk_id)}</b> "
        f"<span style='color:#888;font-size:12px'>{hit.score:.4f}</span> {_render_place(hit)}</div>"
        f"<div style='font-size:13px'>{_render_passage(hit)}</div>{chips}</div>"
        f"<div style='min-width:190px'>{bars}</div></div>"
    )


def _render_bar(name: str, score: float, best: float) -> str:
    """Draws a bar from zero to the best score of this answer; a score below zero has none."""
    share = max(0.0, score / best) if best > 0 else 0.0
    return (
        "<div style='display:flex;align-items:center;font-size:11px;gap:6px'>"
        f"<span style='width:46px;color:#888'>{escape(name)}</span>"
        "<span style='flex:1;background:#8882;height:7px;border-radius:4px;overflow:hidden'>"
        f"<span style='display:block;height:7px;width:{100 * share:.0f}%;background:{colour_of(name)}'>"
        f"</span></span><span style='width:44px;text-align:right'>{score:.3f}</span></div>"
    )


def _render_place(hit: Hit) -> str:
    if not hit.source:
        return ""
    line = "" if hit.line is None else f":{hit.line}"
    name = escape(hit.source.rpartition("/")[2])
    return f"<span style='color:#888;font-size:11px' title='{escape(hit.source)}'>{name}{line}</span>"


def _render_passage(hit: Hit) -> str:
    """Renders the passage with its matches marked, and dots for the text before and after it."""
    passage, end, pieces = hit.passage, 0, []
    for start, stop in passage.marks:
        pieces += [escape(passage.text[end:start]), f"<mark style='{MARK}'>{escape(passage.text[start:stop])}</mark>"]
        end = stop
    before = "… " if passage.start > hit.start else ""
    after = " …" if passage.end < hit.start + len(hit.text) else ""
    return f"{before}{''.join(pieces)}{escape(passage.text[end:])}{after}"
