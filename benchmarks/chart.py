"""Chart: one SVG that shows how far each figure is from its goal, and where the peers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

from benchmarks import report
from benchmarks.timing import Series

_WIDTH, _TOP = 1200, 96
#: Where the axis begins and ends; names are on its left, figures on its right.
_LEFT, _END = 330, 930
_ROW, _LANE = 24, 12
#: What is farther from its goal is drawn at the end of the axis.
_LOWEST, _HIGHEST = 0.01, 1000.0
#: Pixels of a small letter, at most, and from a label to the next one.
_LETTER, _GAP = 6, 12

_EXPLANATION = (
    "How many times as good as its goal each figure is: right is better. "
    "Empty circles are other programs and floors, measured in the same run."
)

_Scale = Callable[[float], float]
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.small { font-size: 10px; fill: #57606a }
.title { font-size: 16px; font-weight: 600 }
.grid { stroke: #d0d7de }
.goal { stroke: #24292f; stroke-width: 1.5 }
.met { fill: #1a7f37 }
.missed { fill: #cf222e }
.peer { fill: #fff; stroke: #57606a; stroke-width: 1.5 }
"""


@dataclass(frozen=True)
class _Mark:
    """A figure on the axis: how many times as good as the goal, and what it is called."""

    at: float
    name: str


@dataclass(frozen=True)
class _Band:
    """The figure of a series, and the peers that did the same."""

    row: str
    series: Series
    at: float
    peers: list[_Mark]


def draw(results: dict[str, list[Series]], machine: str) -> str:
    """Return the SVG: a band for each series with a goal, on one logarithmic axis."""
    bands = list(_bands(results))
    lowest, highest = _range(bands)

    def x(at: float) -> float:
        inside = min(max(at, lowest), highest)
        share = math.log(inside / lowest) / math.log(highest / lowest)
        return _LEFT + share * (_END - _LEFT)

    body, y = [], float(_TOP)
    for band in bands:
        lanes = _lanes([(x(mark.at), mark.name) for mark in band.peers])
        body.append(_band(band, x, y, lanes))
        y += _ROW + _LANE * (max(lanes, default=-1) + 1)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 20:.0f}">',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            '<text x="16" y="28" class="title">jobcore beside its goals and its peers</text>',
            f'<text x="16" y="46" class="small">{escape(machine)}</text>',
            f'<text x="16" y="62" class="small">{_EXPLANATION}</text>',
            *_grid(lowest, highest, x, y),
            *body,
            "</svg>\n",
        ]
    )


def _bands(results: dict[str, list[Series]]) -> Iterator[_Band]:
    for row, series_of_row in results.items():
        for series in series_of_row:
            if series.success is not None and series.judged:
                yield _Band(row, series, series.success, _peers(series, series_of_row))


def _peers(series: Series, of_row: list[Series]) -> list[_Mark]:
    """Return where the peers are that did what this series is about."""
    others = [other for other in of_row if other.peer and other.values and other.median > 0]
    first = of_row[0]
    others = [other for other in others if (other.of or first) is series or other is series.beside]
    marks = []
    for other in others:
        if other.unit == series.unit and series.success is not None:
            better = other.median / series.median
            marks.append(
                _Mark(series.success * (better if series.is_rate else 1 / better), other.what)
            )
    return sorted(marks, key=lambda mark: mark.at)


def _range(bands: list[_Band]) -> tuple[float, float]:
    """Return the powers of ten between which all marks are, or the outermost that are drawn."""
    marks = [0.5, 2.0, *(band.at for band in bands)]
    marks += [mark.at for band in bands for mark in band.peers]
    inside = [min(max(at, _LOWEST), _HIGHEST) for at in marks]
    return 10.0 ** math.floor(math.log10(min(inside))), 10.0 ** math.ceil(math.log10(max(inside)))


def _lanes(marks: list[tuple[float, str]]) -> list[int]:
    """Return for each label, from left to right, the first lane in which it has room."""
    ends: list[float] = []
    lanes = []
    for at, name in marks:
        lane = next((lane for lane, end in enumerate(ends) if end < at), len(ends))
        ends[lane:] = [at + _GAP + _LETTER * len(name), *ends[lane + 1 :]]
        lanes.append(lane)
    return lanes


def _band(band: _Band, x: _Scale, y: float, lanes: list[int]) -> str:
    series = band.series
    outcome = "met" if band.at >= 1 else "missed"
    name = f'<tspan class="small">{escape(band.row)}</tspan> {escape(series.what)}'
    figures = escape(f"{report.figure(series)}, goal {report.goal(series)}")
    parts = [
        f'<text x="16" y="{y + 4:.0f}">{name}</text>',
        f'<text x="{_END + 20}" y="{y + 4:.0f}" class="small">{figures}</text>',
    ]
    for mark, lane in zip(band.peers, lanes, strict=True):
        at, level = x(mark.at), y + (lane + 1) * _LANE
        parts += [
            f'<circle cx="{at:.1f}" cy="{y:.1f}" r="4" class="peer"/>',
            f'<text x="{at - 4:.1f}" y="{level + 4:.0f}" class="small">{escape(mark.name)}</text>',
        ]
    parts.append(f'<circle cx="{x(band.at):.1f}" cy="{y:.1f}" r="6" class="{outcome}"/>')
    return "\n".join(parts)


def _grid(lowest: float, highest: float, x: _Scale, bottom: float) -> Iterator[str]:
    """Yield a line for each power of ten, and one for the goal."""
    for power in range(round(math.log10(lowest)), round(math.log10(highest)) + 1):
        at = 10.0**power
        kind = "goal" if power == 0 else "grid"
        yield (
            f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP - 14}" y2="{bottom:.0f}" '
            f'class="{kind}"/>'
        )
        name = "goal" if power == 0 else f"{at:g} x"
        yield (
            f'<text x="{x(at):.1f}" y="{_TOP - 18}" text-anchor="middle" class="small">'
            f"{name}</text>"
        )
