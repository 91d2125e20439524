"""Configuration: schema, loading and checks. Read by `ovenet.builders` and the tools only."""

from ovenet.config.loading import (
    changed_settings,
    flat_settings,
    flatten,
    load_config,
    load_config_text,
    present_settings,
    read_yaml,
    setting_sources,
)
from ovenet.config.schema import default_config

__all__ = [
    "changed_settings",
    "default_config",
    "flat_settings",
    "flatten",
    "load_config",
    "load_config_text",
    "present_settings",
    "read_yaml",
    "setting_sources",
]
