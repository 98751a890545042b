"""Charts as one PNG, for places without HTML: the SVG of the page in its light colours.

Rendered by resvg, without a browser. Labels use a font of the machine; without any font, labels are missing.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from resvg_py import svg_to_bytes

from sft_hydra.observe.charts import COLOURS, HEIGHT, WIDTH
from sft_hydra.observe.html_pages import TEMPLATES

GAP, TITLE, LEGEND = 20, 30, 20
COLUMNS = 2
SCALE = 2  # image pixels per chart pixel


def write_curves(path: Path, charts: Sequence[tuple[str, Sequence[str], str]]) -> None:
    """Write the PNG. `charts`: (title, legend names, SVG); without charts nothing is written."""
    if charts:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(bytes(svg_to_bytes(svg_string=_sheet(charts), zoom=SCALE)))
        temporary.replace(path)


def _sheet(charts: Sequence[tuple[str, Sequence[str], str]]) -> str:
    cell_width, cell_height = WIDTH + GAP, TITLE + HEIGHT + LEGEND + GAP
    rows = -(-len(charts) // COLUMNS)
    width, height = min(COLUMNS, len(charts)) * cell_width + GAP, rows * cell_height + GAP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><style>{_style()}</style>']
    parts.append('<rect width="100%" height="100%" class="paper"/>')
    for index, (title, names, svg) in enumerate(charts):
        x, y = GAP + index % COLUMNS * cell_width, GAP + index // COLUMNS * cell_height
        placed = svg.replace("<svg ", f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts.append(f'<text class="title" x="{x}" y="{y + 18}">{escape(title)}</text>{placed}')
        left = float(x)
        for number, name in enumerate(names if len(names) > 1 else []):
            top = y + TITLE + HEIGHT + 12
            parts.append(f'<rect class="key c{number % COLOURS}" x="{left}" y="{top - 5}" width="14" height="3"/>')
            parts.append(f'<text class="tick" x="{left + 20}" y="{top}">{escape(name)}</text>')
            left += 40 + 7 * len(name)
    return "".join([*parts, "</svg>"])


def _style() -> str:
    """The light colours of style.css, as CSS that resvg supports."""
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    tone = dict(re.findall(r"--(\w+): light-dark\((#\w+), #\w+\)", css))
    lines = [
        f".line.c{i} {{ stroke: {tone[f'c{i}']} }} .key.c{i}, .dot.c{i} {{ fill: {tone[f'c{i}']} }}"
        for i in range(COLOURS)
    ]
    return "\n".join(
        [
            "text { font-family: sans-serif } .title { font-size: 15px; font-weight: bold }",
            f".paper {{ fill: {tone['card']} }} .title {{ fill: {tone['ink']} }} .tick {{ fill: {tone['dim']}; font-size: 11px }}",
            f".grid {{ stroke: {tone['rule']} }} .line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round }}",
            ".faint { stroke-opacity: 0.25; stroke-width: 1 }",
            *lines,
        ]
    )
