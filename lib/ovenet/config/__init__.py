"""Configuration: schema, loading and checks, without torch. Read by `ovenet.builders` and the tools only."""

from ovenet.config.comparison import changed_settings, flat_settings, present_settings
from ovenet.config.loading import load_config, load_config_text, setting_sources
from ovenet.config.parts import check_parts
from ovenet.config.schema import default_config
from ovenet.config.yaml_file import read_yaml
from ovenet.fields import flatten

__all__ = [
    "changed_settings",
    "check_parts",
    "default_config",
    "flat_settings",
    "flatten",
    "load_config",
    "load_config_text",
    "present_settings",
    "read_yaml",
    "setting_sources",
]
