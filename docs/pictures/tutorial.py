"""Draws docs/pictures/tutorial.svg, the loss curves of the tutorial's run, from docs/pictures/tutorial_losses.json:

python docs/pictures/tutorial.py                                    # after the JSON was changed
python docs/pictures/tutorial.py outputs/tally/metrics.jsonl        # record another run first
"""

import json
import sys
from html import escape
from pathlib import Path

RECORD = Path(__file__).with_name("tutorial_losses.json")
COLOURS = {"loss/gsm8k": "#26a69a", "loss/identity": "#ef8354", "val/loss": "#5c6bc0"}
LABELS = {"loss/gsm8k": "GSM8K, each step", "loss/identity": "identity, each step", "val/loss": "validation"}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 320, 56, 24, 20, 44
INK = "#4b5563"

Series = dict[str, list[list[float]]]  # metric -> [step, value]


def record(metrics: Path) -> Series:
    """The curves in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {
        name: [[line["step"], round(line[name], 4)] for line in lines if line.get(name) is not None] for name in COLOURS
    }


def text(x: float, y: float, content: str, anchor: str = "middle", colour: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="13" fill="{colour}" text-anchor="{anchor}">{escape(content)}</text>'


def draw() -> dict[str, str]:
    """File name -> SVG."""
    series: Series = json.loads(RECORD.read_text(encoding="utf-8"))
    steps = max(step for points in series.values() for step, _ in points)
    top = max(value for points in series.values() for _, value in points)

    def x(step: float) -> float:
        return LEFT + step / steps * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        'aria-label="Losses of the run of the tutorial" font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in range(int(top) + 1):
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(text(LEFT - 8, y(value) + 4, str(value), "end"))
    parts += [text(x(step), HEIGHT - BOTTOM + 18, str(step)) for step in range(0, int(steps) + 1, 10)]
    parts.append(text(WIDTH / 2, HEIGHT - 6, "step"))
    for row, (name, points) in enumerate(series.items()):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(text(WIDTH - RIGHT, TOP + 6 + 18 * row, LABELS[name], "end", COLOURS[name]))
    return {"tutorial.svg": "\n".join([*parts, "</svg>", ""])}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        RECORD.write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    for name, svg in draw().items():
        Path(__file__).with_name(name).write_text(svg, encoding="utf-8")
