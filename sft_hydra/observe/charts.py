"""Line charts as inline SVG, without network access. Colours come from the page's CSS.

The page's script reads exact values from `data-points`; the chart is visible without the script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
MAX_POINTS = 600  # longer series are thinned: a chart is about this many pixels wide
DOTS = 30  # lines with at most this many points show them as dots
GAP = 20  # a line is interrupted where points are more than this many median distances apart
COLOURS = 8

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `colour`: index of its colour, by default its position. `faint`: raw values behind a smoothed line."""

    name: str
    points: Points
    colour: int | None = None
    faint: bool = False


def line_chart(series: Sequence[Series], label: str) -> str:
    """One SVG element; empty text if there is nothing to draw. `label` is for screen readers."""
    drawn = [(index, s, points) for index, s in enumerate(series) if len(points := _thin(_finite(s.points))) > 1]
    if not drawn:
        return ""
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(min(ys), max(ys))
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    frame = f"{LEFT} {WIDTH - RIGHT} {x_low:g} {x_high:g}"  # where x lies, in the chart and as values
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" data-frame="{frame}" role="img" aria-label="{escape(label)}">'
    ]
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            x, _ = place(tick, y_low)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>')
    for index, s, points in drawn:
        parts.append(_line(s, index if s.colour is None else s.colour, points, [place(*point) for point in points]))
    return "".join([*parts, "</svg>"])


def _line(series: Series, colour: int, points: Points, places: Points) -> str:
    distances = sorted(b[0] - a[0] for a, b in pairwise(points))
    gap = GAP * distances[len(distances) // 2]
    ahead = [True, *(b[0] - a[0] > gap for a, b in pairwise(points))]
    path = " ".join(f"{'M' if moves else 'L'}{x:.1f},{y:.1f}" for moves, (x, y) in zip(ahead, places, strict=True))
    values = " ".join(f"{x:g},{y:.6g}" for x, y in points)
    tone = f"c{colour % COLOURS}" + (" faint" if series.faint else "")
    name = escape(series.name)
    line = f'<path class="line {tone}" d="{path}" data-name="{name}" data-points="{values}"/>'
    if len(points) > DOTS:
        return line
    return line + "".join(f'<circle class="dot {tone}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places)


def smooth(points: Points) -> list[tuple[float, float]]:
    """Bias-corrected exponential moving average over about a fiftieth of the points."""
    keep = 1 - 1 / max(1.0, len(points) / 50)
    total = weight = 0.0
    smoothed = []
    for x, y in _finite(points):
        total, weight = keep * total + y, keep * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    scale = 10 ** floor(log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw)
    return [index * step for index in range(floor(low / step), ceil(high / step) + 1)]


def short(value: float) -> str:
    """A tick label of few characters."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-2:
        return f"{value:.2g}".replace("e-0", "e-")
    return f"{value:.4g}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if isfinite(y)]


def _thin(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    step = len(points) / MAX_POINTS
    return [points[int(i * step)] for i in range(MAX_POINTS)] + [points[-1]]
