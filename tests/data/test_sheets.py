"""Contact sheets: what is ignored looks unlike a class that is black."""

import numpy as np

from ovenet.data.info import DatasetInfo
from ovenet.data.sheets import contact_sheet, hatch
from ovenet.structures import Sample

TWO = DatasetInfo("two", ("background", "crack"), ((0, 0, 0), (255, 0, 0)), (0, 1), ignored_ids=(255,))
GREY = np.full((100, 199, 3), 50, np.uint8)  # as wide as half a tile of 400, so that nothing is resized
TOP, LEFT = 6, 6 + 199 + 2  # of the overlay


def overlay_of(labels):
    sheet = contact_sheet([Sample(GREY, labels, "a.png")], TWO, num_columns=1)
    return sheet, sheet[TOP : TOP + 100, LEFT : LEFT + 199]


def test_ignored_pixels_are_hatched_and_a_black_class_is_not():
    labels = np.zeros((100, 199), np.int16)
    labels[50:] = 255
    _, overlay = overlay_of(labels)
    assert (overlay[:50] == 20).all()  # 0.4 * 50 + 0.6 * 0
    stripes = (overlay[50:] == 200).all(axis=2)
    assert stripes.mean() == np.mean([(y + x) % 8 < 2 for y in range(50, 100) for x in range(199)])
    assert (overlay[50:][~stripes] == 20).all()


def test_the_legend_hatches_what_is_ignored_and_nothing_else():
    labels = np.zeros((100, 199), np.int16)
    sheet, _ = overlay_of(labels)
    legend = sheet[TOP + 100 + 16 + 6 :]
    background, ignored = legend[1:14, 7:24], legend[1:14, 7:]
    assert (background == 0).all()
    assert (ignored == 200).all(axis=2).any()


def test_hatching_leaves_the_picture_it_was_given():
    picture = np.zeros((16, 16, 3), np.uint8)
    out = hatch(picture, np.ones((16, 16), bool))
    assert picture.sum() == 0
    assert (out == 200).all(axis=2).mean() == 0.25
