"""Configuration: schema, loading and checks. Read by `ovenet.builders` and the tools only."""

from ovenet.config.defaults import default_config
from ovenet.config.loading import load_config

__all__ = ["default_config", "load_config"]
