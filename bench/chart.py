"""The picture of a run: horizontal bars of CPU per call and per chunk, as SVG written by hand.

Lives here: geometry and colours. Elsewhere: the figures (report.py).
Idea: the axis is linear and ends at three times the reference; a longer bar is cut, marked and labelled, so that one slow
contender does not flatten the others."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report import Row

_WIDTH, _LABEL, _BAR, _ROW, _TOP = 860, 150, 520, 26, 40
_AXIS_RATIO = 3.0
_OURS, _REFERENCE, _OTHER = "#0b7a75", "#b4532a", "#8a94a0"


def render_chart(panels: Sequence[tuple[str, Sequence[Row]]], *, reference: str) -> str:
    """In: (title, rows) per panel and the contender whose ratio is 1. Out: an SVG document."""
    parts, top = [], 8
    for title, rows in panels:
        shown = [row for row in rows if row.cpu_us is not None]
        if shown:
            parts.append(_render_panel(title, shown, reference, top))
            top += _TOP + _ROW * len(shown) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'font-family="sans-serif" font-size="13"><rect width="{_WIDTH}" height="{top}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _render_panel(title: str, rows: Sequence[Row], reference: str, top: int) -> str:
    costs = {row.contender: row.cpu_us or 0.0 for row in rows}
    axis = _AXIS_RATIO * costs[reference] if costs.get(reference) else max(costs.values())
    bars = [f'<text x="8" y="{top + 20}" font-weight="bold" fill="#222">{escape(title)}</text>']
    for number, row in enumerate(rows):
        bars.append(
            _render_bar(row, costs[row.contender] / axis if axis else 0.0, reference, top + _TOP + number * _ROW)
        )
    return "".join(bars)


def _render_bar(row: Row, share: float, reference: str, y: int) -> str:
    is_cut = share > 1
    width = round(min(share, 1.0) * _BAR, 1)
    colour = _OURS if row.contender.startswith("hookline") else _REFERENCE if row.contender == reference else _OTHER
    ratio = "" if row.ratio is None else f" · {row.ratio:.2f}"
    label = f"{row.cpu_us:,.1f} µs{ratio}" if row.cpu_us is not None else ""
    break_mark = (
        f'<path d="M{_LABEL + width - 16} {y - 2}l-6 22h5l6-22z" fill="#fff"/>' if is_cut else ""  # the bar goes on
    )
    return (
        f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end" fill="#222">{escape(row.contender)}</text>'
        f'<rect x="{_LABEL}" y="{y}" width="{width}" height="18" fill="{colour}"/>{break_mark}'
        f'<text x="{_LABEL + width + 6}" y="{y + 13}" fill="#222">{label}</text>'
    )
