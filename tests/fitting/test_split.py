"""Photos are divided so that rare classes are learned and scored."""

import random

import pytest

from ovenet.fitting.split import choose_validation


def classes_of(classes, chosen):
    inside, outside = set(), set()
    for index, some in enumerate(classes):
        (inside if index in chosen else outside).update(some)
    return inside, outside


def test_a_rare_class_is_in_both_parts():
    classes = [[0, 1]] * 28 + [[0, 2], [0, 1, 2]]
    for seed in range(20):
        chosen = choose_validation(classes, seed=seed)
        assert len(chosen) == 6
        inside, outside = classes_of(classes, chosen)
        assert inside == outside == {0, 1, 2}


def test_a_class_of_one_photo_is_learned():
    for seed in range(20):
        assert 7 not in choose_validation([[0]] * 7 + [[0, 3]] + [[0]] * 2, seed=seed)


@pytest.mark.parametrize("num_photos", [2, 3, 4, 5, 9, 100])
def test_each_part_has_a_photo(num_photos):
    chosen = choose_validation([[0, 1]] * num_photos)
    assert len(chosen) == max(1, round(0.2 * num_photos)) < num_photos
    assert chosen == sorted(set(chosen)) == choose_validation([[0, 1]] * num_photos)


def test_photos_without_a_class_are_divided_too():
    assert len(choose_validation([[]] * 10)) == 2


def test_any_classes():
    rng = random.Random(0)
    for _ in range(200):
        classes = [[k for k in range(6) if rng.random() < (k + 1) / 8] for _ in range(rng.randint(2, 30))]
        chosen = choose_validation(classes, seed=rng.randint(0, 9))
        assert len(chosen) == max(1, min(len(classes) - 1, round(0.2 * len(classes))))
        _, outside = classes_of(classes, chosen)
        common = {k for k in range(6) if sum(k in some for some in classes) >= 5}
        assert common <= outside
