"""Charts as SVG, written by hand: they take the colours of the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from herd.sim.compare import BOUND, HERD
from herd.sim.figures import COLOURS, Curve, Figure, colours, dash

#: Pixels. Text is placed for 12 px letters.
WIDTH = 640
_NAMES = 150
_ROW = 24
_AXIS = 36
_CURVES = 330
_LEFT = 46


def bars(shown: Figure) -> str:
    """Mean completion by policy, with intervals."""
    axis = _Axis(
        [value for _, each in shown.bars for value in (each.low, each.high)],
        _NAMES,
        WIDTH - 60,
        logarithmic=shown.logarithmic,
    )
    palette = colours(shown)
    height = len(shown.bars) * _ROW + _AXIS
    parts = [*_ticks(axis, 0, height - _AXIS)]
    for number, (name, each) in enumerate(shown.bars):
        y = number * _ROW
        middle = y + _ROW / 2
        width = max(1.0, axis.at(each.mean) - _NAMES)
        end = axis.at(each.high)
        # The bound is no policy: an outline.
        style = (
            'fill="none" stroke="currentColor" stroke-dasharray="3 3"'
            if name == BOUND
            else f'fill="{palette[name]}"'
        )
        parts += [
            _name(name, middle),
            f'<rect x="{_NAMES}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}" {style}>',
            f"<title>{escape(name)}: {each.mean:.2f} s ({each.low:.2f} to {each.high:.2f})</title>",
            "</rect>",
            f'<path class="whisker" d="M{axis.at(each.low):.1f} {middle}H{end:.1f}"/>',
            f'<text x="{end + 6:.1f}" y="{middle + 4}">{each.mean:.3g}</text>',
        ]
    return _svg(height, "Mean seconds to completion by policy", parts)


def curves(shown: Figure, drawn: Sequence[Curve], label: str) -> str:
    """Distributions, one line for each policy; an empty text if there are none."""
    if not drawn:
        return ""
    palette = colours(shown)
    # What comes at once is not drawn: a logarithmic axis would give it most of the room.
    positive = [value for curve in drawn for value in curve.seconds[2:] if value > 0.0]
    axis = _Axis(positive, _LEFT, WIDTH - 12, logarithmic=True)
    bottom = _CURVES - _AXIS
    parts = [*_ticks(axis, 8, bottom)]
    for share in range(0, 101, 25):
        y = _height(share, bottom)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - 12}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share} %</text>')
    for curve in sorted(drawn, key=lambda curve: curve.policy == HERD):
        points = " ".join(
            f"{axis.at(max(value, axis.low)):.1f},{_height(share, bottom):.1f}"
            for share, value in enumerate(curve.seconds)
        )
        width = 3.5 if curve.policy == HERD else 1.5
        dashes = ' stroke-dasharray="5 3"' if dash(shown, curve.policy) else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{palette[curve.policy]}" '
            f'stroke-width="{width}"{dashes}><title>{escape(curve.policy)}</title></polyline>'
        )
    return _svg(_CURVES, label, parts)


def shares(shown: Figure) -> str:
    """Who served which share of the requests, by policy."""
    parts = []
    scale = (WIDTH - _NAMES - 12) / 100.0
    for number, (policy, found) in enumerate(shown.shares):
        y = number * _ROW
        parts.append(_name(policy, y + _ROW / 2))
        x = float(_NAMES)
        for index, (device, share) in enumerate(found):
            width = 100.0 * share * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}" '
                f'fill="{COLOURS[index % len(COLOURS)]}">'
                f"<title>{escape(device)}: {share:.1%}</title></rect>"
            )
            x += width
    return _svg(len(shown.shares) * _ROW + 4, "Share of the requests by device", parts)


def legend(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Name and colour, dashed or not, in a row."""
    items = "".join(
        f'<span><i class="{"dashed" if dashed else ""}" style="--c:{colour}"></i>{escape(name)}'
        "</span>"
        for name, colour, dashed in entries
    )
    return f'<p class="legend">{items}</p>'


class _Axis:
    """From seconds to pixels."""

    def __init__(
        self, values: Sequence[float], left: float, right: float, *, logarithmic: bool
    ) -> None:
        self.logarithmic = logarithmic
        self.high = max(values, default=1.0)
        self.low = min(values, default=0.1) if logarithmic else 0.0
        if logarithmic:
            self.low = min(self.low, self.high / 10.0)
        self._left = left
        self._right = right

    def at(self, value: float) -> float:
        """Where a value stands."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return self._left + max(0.0, share) * (self._right - self._left)

    def ticks(self) -> list[float]:
        """Round values on it."""
        if self.logarithmic:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            many = last - first > 3  # noqa: PLR2004 - decades for which three numbers each have room
            found = [
                factor * 10.0**power
                for power in range(first, last + 1)
                for factor in ((1,) if many else (1, 2, 5))
            ]
        else:
            raw = self.high / 5.0
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
            found = [step * number for number in range(int(self.high / step) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def _ticks(axis: _Axis, top: float, bottom: float) -> Iterable[str]:
    for value in axis.ticks():
        x = axis.at(value)
        yield f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
    yield f'<text x="{WIDTH - 12}" y="{bottom + 32}" text-anchor="end">seconds</text>'


def _height(share: float, bottom: float) -> float:
    return bottom - share / 100.0 * (bottom - 8)


def _name(name: str, middle: float) -> str:
    weight = ' font-weight="bold"' if name == HERD else ""
    return (
        f'<text x="{_NAMES - 8}" y="{middle + 4}" text-anchor="end"{weight}>{escape(name)}</text>'
    )


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
