"""Draws docs/pictures/pipeline.svg, the picture of the README: python docs/pictures/pipeline.py"""

from html import escape
from pathlib import Path

BOXES = (
    ("chat rows", ("JSONL, Parquet, hub", "checked, none lost"), "#26a69a"),
    ("packed shards", ("tokens, loss mask,", "document boundaries"), "#5c6bc0"),
    ("training", ("full or LoRA", "dp, tp, pp, cp, ep"), "#ef8354"),
    ("Hugging Face folder", ("verified against", "the live model"), "#8d6e63"),
)
BELOW = ("runner=data_prep", "runner=inspect", "runner=train, evaluate", "runner=export, generate")
WIDTH, HEIGHT, GAP, MARGIN = 196, 92, 34, 14
FONT = "font-family: system-ui, -apple-system, Segoe UI, Roboto, sans-serif"


def text(x: float, y: float, content: str, size: int, colour: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="middle">'
        f"{escape(content)}</text>"
    )


def draw() -> dict[str, str]:
    """File name -> SVG."""
    width = 2 * MARGIN + len(BOXES) * WIDTH + (len(BOXES) - 1) * GAP
    height = HEIGHT + 2 * MARGIN + 26
    label = "Chat rows become packed shards, then a training on any layout, then a Hugging Face folder"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{label}" style="{FONT}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, ((title, lines, colour), runner) in enumerate(zip(BOXES, BELOW, strict=True)):
        x = MARGIN + number * (WIDTH + GAP)
        middle = x + WIDTH / 2
        parts.append(f'<rect x="{x}" y="{MARGIN}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{colour}"/>')
        parts.append(text(middle, MARGIN + 30, title, 17, "#ffffff", "bold"))
        parts += [text(middle, MARGIN + 54 + 19 * row, line, 14, "#ffffff") for row, line in enumerate(lines)]
        parts.append(text(middle, MARGIN + HEIGHT + 24, runner, 13, "#4b5563"))
        if number:
            tip, y = x - 6, MARGIN + HEIGHT / 2
            parts.append(f'<path d="M{x - GAP + 6} {y:g}H{tip - 8}" stroke="#4b5563" stroke-width="2"/>')
            parts.append(f'<path d="M{tip} {y:g}l-10 -6v12z" fill="#4b5563"/>')
    return {"pipeline.svg": "\n".join([*parts, "</svg>", ""])}


if __name__ == "__main__":
    for name, svg in draw().items():
        Path(__file__).with_name(name).write_text(svg, encoding="utf-8")
