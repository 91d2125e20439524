"""The phases of a training, from a configuration."""

import pytest

from ovenet.builders import build_phases
from ovenet.errors import UserError


@pytest.fixture
def settings(tiny_data):
    """Six training images in batches of two, and two images for the extra epoch."""
    (tiny_data / "list/camvid/extra.lst").write_text("".join(f"val/{i}.png valannot/{i}.png\n" for i in range(2)))
    extra = ("DATASET.EXTRA_TRAIN_SET", "list/camvid/extra.lst", "TRAIN.EXTRA_EPOCH", 1)
    return ("DATASET.ROOT", str(tiny_data), "TRAIN.END_EPOCH", 2, *extra)


def test_extra_epochs_are_the_second_phase(tiny_cfg, settings):
    main, extra = build_phases(tiny_cfg(*settings))
    assert (len(main.loader), main.end_epoch) == (3, 2)
    assert (len(extra.loader), extra.end_epoch) == (1, 3)


@pytest.mark.parametrize(
    ("accumulate", "key", "list_file", "batches"),
    [(4, "DATASET.TRAIN_SET", "train.lst", 3), (2, "DATASET.EXTRA_TRAIN_SET", "extra.lst", 1)],
)
def test_an_epoch_has_at_least_one_iteration_in_each_phase(tiny_cfg, settings, accumulate, key, list_file, batches):
    with pytest.raises(UserError, match=rf"TRAIN\.ACCUMULATE is {accumulate}.*{key} .*{list_file}.* {batches} batch"):
        build_phases(tiny_cfg(*settings, "TRAIN.ACCUMULATE", accumulate))
