"""Self-contained HTML pages: one file, no network. `render` fills a template of `html/`, `pack` encodes an array for a page.

Invariant: all data is escaped by the template or inserted as text by the script, so data cannot inject code.
"""

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

TEMPLATES = Path(__file__).with_name("html")


def render(template: str, **values: Any) -> str:
    """HTML text of a page. jinja2.UndefinedError if a value of the template is missing."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["inline"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    env.filters["percent"] = lambda value: f"{value:.1%}"
    env.filters["thousands"] = lambda value: f"{value:,.0f}"
    env.filters["seconds"] = lambda value: f"{value:,.1f} s"
    return env.get_template(template).render(**values)


def write(path: Path, text: str) -> None:
    """Write a page atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def pack(data: bytes | NDArray[Any]) -> str:
    """base64 of the gzipped bytes (arrays: little-endian); the browser decodes it with DecompressionStream."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")
