"""Small charts as SVG text that follow the colours of the page that they stand in."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40

Points = Sequence[tuple[float, float]]


class _Axis:
    """From values to pixels, with ticks at round numbers."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool = False) -> None:
        self.log = log
        if log:
            low, high = math.log10(low) - 0.1, math.log10(high) + 0.1
        elif low == high:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def place(self, value: float) -> float:
        """Pixel of a value."""
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.log:
            exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
            return [value for value in values if self.low <= math.log10(value) <= self.high]
        raw = (self.high - self.low) / 5
        step = 10 ** math.floor(math.log10(raw))
        step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Lines with a legend.

    Args:
        series: points by name; those that are not finite are left out.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    finite = {name: [(a, b) for a, b in points if math.isfinite(b)] for name, points in series.items()}
    series = {name: points for name, points in finite.items() if points}
    if not series:
        return "<p>No curve was written.</p>"
    x, y, frame = _frame([p for points in series.values() for p in points], x_label, y_label, log_x=False)
    lines = []
    for number, (name, points) in enumerate(series.items()):
        path = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in points)
        last = points[-1][1]
        lines.append(f'<polyline class="c{number % 6}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) == 1:
            lines.append(_dot(x.place(points[0][0]), y.place(last), number, name))
    return _legend(series) + _svg(frame + "".join(lines), f"{y_label} against {x_label}")


def scatter_chart(points: Mapping[str, tuple[float, float]], x_label: str, y_label: str) -> str:
    """Named points over a logarithmic horizontal axis."""
    x, y, frame = _frame(list(points.values()), x_label, y_label, log_x=True)
    marks = []
    for number, (name, (a, b)) in enumerate(points.items()):
        left, top = x.place(a), y.place(b)
        anchor = "end" if left > _WIDTH * 0.6 else "start"
        shift = -9 if anchor == "end" else 9
        marks.append(_dot(left, top, number, name))
        marks.append(f'<text x="{left + shift:.1f}" y="{top + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return _svg(frame + "".join(marks), f"{y_label} against {x_label}")


def _frame(points: Points, x_label: str, y_label: str, log_x: bool) -> tuple[_Axis, _Axis, str]:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    margin = (max(ys) - min(ys)) * 0.08
    x = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT, log_x)
    y = _Axis(min(ys) - margin, max(ys) + margin, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in y.ticks():
        top = y.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x.ticks():
        left, bottom = x.place(value), _HEIGHT - _BOTTOM
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{left:.1f}" y="{bottom + 16}" text-anchor="middle">{_short(value)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    upright = f"translate(12 {(_HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)"
    parts.append(f'<text transform="{upright}" text-anchor="middle">{escape(y_label)}</text>')
    return x, y, "".join(parts)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _dot(left: float, top: float, number: int, name: str) -> str:
    return f'<circle class="c{number % 6}" cx="{left:.1f}" cy="{top:.1f}" r="5"><title>{escape(name)}</title></circle>'


def _legend(series: Mapping[str, Points]) -> str:
    entries = (f'<li class="c{number % 6}">{escape(name)}</li>' for number, name in enumerate(series))
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _svg(content: str, label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'
