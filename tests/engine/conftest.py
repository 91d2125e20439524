"""A network of four convolutions, for what is true of the training of any network."""

import pytest
from tests.four_convolutions import registered, small_settings

from ovenet.config import load_config


@pytest.fixture
def small_cfg(write_config):
    """A function that gives the config of an OVeNet of four convolutions, with overrides ``KEY, VALUE, …``.

    Of a network the loop sees parameters, statistics of BatchNorm and random numbers of dropout.
    """
    path = write_config(small_settings(), "small.yaml")
    with registered():
        yield lambda *overrides: load_config(path, [str(o) for o in overrides])
