"""Template, script and colours of all pages."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from ovenet.inference.pictures import colorize_offset
from ovenet.report.gallery import encode_webp
from ovenet.report.tables import direction, percent, signed

_FOLDER = Path(__file__).parent
_WHEEL_RADIUS = 48
# Okabe and Ito's colours, then lighter and darker ones of the same hues: more than 21 classes repeat them.
_SAFE_HUES = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
_SAFE_SHADES = ((1.0, 0), (0.55, 0), (0.5, 127))  # share of the hue, plus white


def page_template(name: str = "report.html.j2", script_name: str = "report.js") -> jinja2.Template:
    """The template of a page, with its scripts; by default of those with the viewer."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=jinja2.select_autoescape(["j2"], default_for_string=True),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"percent": percent, "signed": signed, "direction": direction}
    for key, file in (("script", script_name), ("app_script", "app.js")):
        script = "\n" + (_FOLDER / file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        environment.globals |= {key: script, f"{key}_hash": digest}
    return environment.get_template(name)


def in_script(content: Any) -> str:
    """JSON that cannot end its ``<script>`` element."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def colours(names: Sequence[str], palette: Sequence[Sequence[int]], longest: float) -> dict[str, Any]:
    """Colours of classes, offsets (up to the longest) and confidence."""
    import matplotlib as mpl  # takes half a second

    cividis = (mpl.colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(int)
    return {
        "classes": list(names),
        "palette": [list(color) for color in palette],
        "safe_palette": [_safe_color(index) for index in range(len(names))],
        "cividis": cividis.tolist(),
        "wheel": _wheel(longest),
    }


@cache
def _wheel(longest: float) -> str:
    """The picture of the colours of offsets up to the longest, which each page asks for twice."""
    axis = torch.linspace(-longest, longest, 2 * _WHEEL_RADIUS + 1)
    wheel = colorize_offset(torch.stack(torch.meshgrid(axis, axis, indexing="xy")), longest)
    return encode_webp(wheel.permute(1, 2, 0).numpy())


def _safe_color(index: int) -> list[int]:
    shade, white = _SAFE_SHADES[index // len(_SAFE_HUES) % len(_SAFE_SHADES)]
    return [round(shade * channel) + white for channel in _SAFE_HUES[index % len(_SAFE_HUES)]]
