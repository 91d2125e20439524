"""A training as long as its time budget."""

import pytest

from ovenet.fitting.timing import Times, plan_training, total_seconds
from ovenet.preparation.recipe import Schedule


@pytest.mark.parametrize("seconds", [60, 600, 3600])
@pytest.mark.parametrize("num_val", [1, 6, 200])
def test_the_plan_fits_into_the_budget(seconds, num_val):
    times = Times(step_s=0.9, photo_s=0.4)
    plan = plan_training(times, seconds, num_train=4 * num_val, num_val=num_val, batch_size=8)
    told = total_seconds(times, plan.num_steps, plan.num_validations, num_val=num_val)
    assert told == pytest.approx(plan.num_steps * 0.9 + (plan.num_validations + 1) * 2 * num_val * 0.4 + 5)
    assert told <= 0.8 * seconds or plan.num_steps == 1
    assert 2 <= plan.num_validations <= 12


def test_thirty_photos_in_ten_minutes():
    plan = plan_training(Times(1.0, 0.3), 600, num_train=24, num_val=6, batch_size=8)
    assert plan.num_validations == 12  # of 3.6 s each
    assert plan.num_steps == int(480 - 5 - 13 * 3.6)


def test_a_fast_card_does_not_see_a_photo_thousands_of_times():
    plan = plan_training(Times(0.01, 0.01), 600, num_train=24, num_val=6, batch_size=8)
    assert plan.num_steps == 400 * 24 / 8


@pytest.mark.parametrize(
    ("num_steps", "num_train", "epochs", "total"),
    [(480, 24, 12, 468), (500, 24, 12, 504), (1, 24, 1, 1), (5, 2, 5, 5), (100, 5000, 1, 100), (700, 5000, 1, 625)],
)
def test_schedules(num_steps, num_train, epochs, total):
    schedule = Schedule.of_steps(num_steps, num_train, 12)
    assert (schedule.num_epochs, schedule.total) == (epochs, total)
    if not schedule.num_steps:
        assert schedule.total == epochs * (schedule.repeats * num_train // schedule.batch_size)
        assert schedule.repeats * num_train >= schedule.batch_size
