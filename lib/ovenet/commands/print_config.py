"""Prints the resolved settings of an experiment, each with its source."""

from __future__ import annotations

import json

from ovenet.config import check_parts, default_config, flat_settings, load_config, setting_sources
from ovenet.utils.cli import config_parser


def main() -> None:
    """Prints ``KEY: value  # source`` lines, a valid config file."""
    parser = config_parser(__doc__)
    parser.add_argument("--changed", action="store_true", help="leave out defaults")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.cfg, args.overrides)
    check_parts(cfg)
    settings, defaults = flat_settings(cfg), flat_settings(default_config())
    sources = setting_sources(args.cfg, args.overrides)
    lines = []
    for key, value in sorted(settings.items()):
        is_default = key in defaults and defaults[key] == value
        if not (args.changed and is_default):
            lines.append((f"{key}: {json.dumps(value, ensure_ascii=False)}", sources.get(key, "default")))
    width = min(max((len(text) for text, _ in lines), default=0), 80)
    for text, source in lines:
        print(f"{text:<{width}}  # {source}")
