"""Draws three small charts as inline SVG, so that a report is one file for any browser, offline, light or dark.

Matplotlib would draw more, at half a second of import and a dependency that nothing else here needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 56, 24
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def abbreviate(n: float) -> str:
    """Abbreviates a number: 1234567 as 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= limit:
            return f"{n / limit:.1f}{unit}"
    return f"{n:.0f}" if n == int(n) else f"{n:.1f}"


def _svg(body: Sequence[str], height: int, label: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}">'
    return "\n".join([head, *body, "</svg>"])


def _text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _frame(top: float, left: str, right: str) -> list[str]:
    """Draws axes with the largest value at the top left and labels at both ends of the x axis."""
    bottom = HEIGHT - BOTTOM
    return [
        f'<path class="axis" d="M{LEFT} 8V{bottom}H{WIDTH - 8}"/>',
        _text(LEFT - 6, 16, abbreviate(top), "end"),
        _text(LEFT - 6, bottom, "0", "end"),
        _text(LEFT, HEIGHT - 6, left),
        _text(WIDTH - 8, HEIGHT - 6, right, "end"),
    ]


def line_chart(xs: Sequence[float], ys: Sequence[float], label: str, unit: str) -> str:
    """Draws y over x, from zero; `unit` labels the last x value."""
    if not xs:
        return ""
    top, last = max(max(ys), 1e-9), max(xs[-1], 1e-9)
    wide, high = WIDTH - LEFT - 8, HEIGHT - BOTTOM - 12
    points = " ".join(
        f"{LEFT + wide * x / last:.1f},{12 + high * (1 - y / top):.1f}" for x, y in zip(xs, ys, strict=True)
    )
    drawn = f'<polyline fill="none" stroke="{COLOURS[0]}" stroke-width="2" points="{points}"/>'
    return _svg([*_frame(top, "0", f"{abbreviate(xs[-1])} {unit}"), drawn], HEIGHT, label)


def bar_chart(counts: Mapping[str, float], label: str) -> str:
    """Draws one bar per key, labelled below; empty bars at both ends are left out."""
    filled = [i for i, n in enumerate(counts.values()) if n]
    if not filled:
        return ""
    shown = list(counts.items())[filled[0] : filled[-1] + 1]
    top, step, high = max(n for _, n in shown), (WIDTH - LEFT - 8) / len(shown), HEIGHT - BOTTOM - 12
    body = _frame(top, "", "")
    for i, (name, n) in enumerate(shown):
        x, tall = LEFT + i * step, high * n / top
        title = f"<title>{escape(name)}: {n:,.0f}</title>"
        body.append(
            f'<rect x="{x + 2:.1f}" y="{12 + high - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" '
            f'fill="{COLOURS[0]}">{title}</rect>'
        )
        body.append(_text(x + step / 2, HEIGHT - 6, name, "middle"))
    return _svg(body, HEIGHT, label)


def share_chart(parts: Mapping[str, float], label: str, unit: str) -> str:
    """Draws one bar split into parts, with a legend of their values."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    body, x = [], 0.0
    for i, (name, value) in enumerate(parts.items()):
        colour, wide = COLOURS[i % len(COLOURS)], WIDTH * value / total
        body.append(f'<rect x="{x:.1f}" y="0" width="{wide:.1f}" height="28" fill="{colour}"/>')
        body.append(f'<rect x="0" y="{40 + 18 * i}" width="12" height="12" fill="{colour}"/>')
        body.append(_text(18, 50 + 18 * i, f"{name}: {value:,.1f} {unit} ({value / total:.0%})"))
        x += wide
    return _svg(body, 44 + 18 * len(parts), label)
