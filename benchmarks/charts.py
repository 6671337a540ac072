"""Charts as SVG, written by hand: grouped bars on a logarithmic or plain scale. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = {"twisted_paxos": "#2b6cb0", "etcd": "#dd6b20", "pysyncobj": "#718096"}
OTHER_COLOURS = ("#38a169", "#805ad5", "#d53f8c")

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 56, 48


def _ticks(lowest: float, highest: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)]
    step = 10.0 ** math.floor(math.log10(highest))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if highest / (step * part) <= 8)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _label(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#2d3748">'
        f"{escape(text)}</text>"
    )


def bars(
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    logarithmic: bool = False,
) -> str:
    """A grouped bar chart.

    Args:
        title: shown above.
        unit: of the values.
        groups: names of the groups, from left to right.
        series: per system one value for each group; not a number leaves a gap.
        logarithmic: the scale; all values must be positive then.
    """
    values = [value for row in series.values() for value in row if not math.isnan(value)]
    if not values or max(values) <= 0:
        values = [1.0]
    ticks = _ticks(min(values), max(values), logarithmic)
    parts = [_head(title, unit), *_scale(ticks, logarithmic)]
    group_width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    bar_width = group_width * 0.8 / max(1, len(series))
    for at, group in enumerate(groups):
        left = _LEFT + at * group_width + group_width * 0.1
        parts.append(_text(left + group_width * 0.4, _HEIGHT - _BOTTOM + 18, group))
        for number, (name, row) in enumerate(series.items()):
            if not math.isnan(row[at]):
                top = _y(row[at], ticks, logarithmic)
                parts.append(_bar(left + number * bar_width, top, bar_width, _colour(name, number)))
                parts.append(_text(left + (number + 0.5) * bar_width, top - 4, _label(row[at]), size=10))
    parts += _legend(list(series))
    return "\n".join([*parts, "</svg>", ""])


def _head(title: str, unit: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + _text(_LEFT, 20, f"{title} ({unit})", "start", 15)
    )


def _y(value: float, ticks: Sequence[float], logarithmic: bool) -> float:
    low, high = ticks[0], ticks[-1]
    share = math.log(value / low, high / low) if logarithmic else (value - low) / (high - low)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _scale(ticks: Sequence[float], logarithmic: bool) -> list[str]:
    lines = []
    for tick in ticks:
        y = _y(tick, ticks, logarithmic)
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e2e8f0"/>')
        lines.append(_text(_LEFT - 8, y + 4, _label(tick), "end", 11))
    return lines


def _bar(x: float, top: float, width: float, colour: str) -> str:
    height = max(0.5, _HEIGHT - _BOTTOM - top)
    return (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width * 0.94:.1f}" height="{height:.1f}" fill="{colour}"/>'
    )


def _colour(name: str, number: int) -> str:
    return COLOURS.get(name, OTHER_COLOURS[number % len(OTHER_COLOURS)])


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        x = _LEFT + number * 140
        parts.append(f'<rect x="{x}" y="30" width="12" height="12" fill="{_colour(name, number)}"/>')
        parts.append(_text(x + 18, 41, name, "start"))
    return parts
