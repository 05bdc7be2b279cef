"""A line chart as SVG, by hand: a drawing library is not worth a dependency for one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00")
"""Of Okabe and Ito: told apart by colour-blind readers, seen on white and on black."""
WIDTH_PX, HEIGHT_PX = 960, 430
TOP_PX, BOTTOM_PX, LEFT_PX, GAP_PX, RIGHT_PX = 74, 92, 60, 34, 16

_STYLE = """
  rect.page { fill: #ffffff } text { fill: #24292f; font: 13px sans-serif } .title { font-weight: bold }
  .grid { stroke: #8c959f; stroke-opacity: .35 } .served, .entitled { fill: none; stroke-width: 1.5 }
  .entitled { stroke-width: 9; stroke-opacity: .3 } line.key { stroke: #24292f }
  @media (prefers-color-scheme: dark) {
    rect.page { fill: #0d1117 } text { fill: #e6edf3 } line.key { stroke: #e6edf3 }
  }"""


@dataclass(frozen=True)
class Panel:
    """One set of axes: by name, what was served and what was due at each moment, from 0 to 1."""

    title: str
    served: Mapping[str, Sequence[float]]
    entitled: Mapping[str, Sequence[float]]


def draw(title: str, panels: Sequence[Panel], times: Sequence[float], unit: str) -> str:
    """Draw panels side by side over the same times; a thin line is what was served, a broad one what was due."""
    width = (WIDTH_PX - LEFT_PX - RIGHT_PX - GAP_PX * (len(panels) - 1)) / len(panels)
    height, last = HEIGHT_PX - TOP_PX - BOTTOM_PX, times[-1]
    parts = [_text(WIDTH_PX / 2, 26, title, "middle", "title")]
    for i, panel in enumerate(panels):
        left = LEFT_PX + i * (width + GAP_PX)

        def line(kind: str, values: Sequence[float], colour: str, left: float = left) -> str:
            points = " ".join(
                f"{left + width * time / last:.1f},{TOP_PX + height * (1 - value):.1f}"
                for time, value in zip(times, values, strict=True)
            )
            return f'<polyline class="{kind}" stroke="{colour}" points="{points}"/>'

        parts.append(_text(left + width / 2, TOP_PX - 12, panel.title, "middle"))
        for percent in range(0, 101, 25):
            y = TOP_PX + height * (1 - percent / 100)
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            if i == 0:
                parts.append(_text(left - 8, y + 4, f"{percent} %", "end"))
        for hour in range(int(last) + 1):
            x = left + width * hour / last
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX}" y2="{TOP_PX + height}"/>')
            parts.append(_text(x, TOP_PX + height + 18, str(hour), "middle"))
        parts.append(_text(left + width / 2, TOP_PX + height + 36, unit, "middle"))
        for kind, lines in (("entitled", panel.entitled), ("served", panel.served)):
            parts += [line(kind, lines[name], colour) for name, colour in zip(panel.served, COLOURS, strict=True)]
    keys = [(name, "served", f'stroke="{colour}"') for name, colour in zip(panels[0].served, COLOURS, strict=True)]
    keys += [("served", "served key", ""), ("entitled", "entitled key", "")]
    for i, (name, kind, stroke) in enumerate(keys):
        x, y = LEFT_PX + i * (WIDTH_PX - LEFT_PX) / len(keys), HEIGHT_PX - 20
        parts.append(f'<line class="{kind}" {stroke} x1="{x:.1f}" x2="{x + 26:.1f}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(_text(x + 32, y, name, "start"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}\n</style>\n"
        f'<rect class="page" width="{WIDTH_PX}" height="{HEIGHT_PX}"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
