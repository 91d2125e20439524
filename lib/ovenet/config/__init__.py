"""Configuration: schema, loading and checks. Read by `ovenet.builders` and the tools only."""

from ovenet.config.defaults import default_config
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
