"""The audit of how label files are stored: what may be read wrong, what is remarked, and that clean files are not."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.audit.audited import FIVE, RNG, Data, bands_of, only
from tests.data.pixel_files import png, tiff

from ovenet.audit import audit_as_dict, audit_list, findings_about_both, format_finding

COLORS = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200))
COLORED = replace(FIVE, label_format="either", palette=COLORS)
TWO = replace(FIVE, class_names=("ground", "crack"), palette=COLORS[:2], label_ids=(0, 1))


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def indexed(indices, palette):
    picture = Image.fromarray(bands_of(indices), "P")
    picture.putpalette([channel for color in palette for channel in color])
    return picture


def colored(bands):
    return bands_of([COLORS[k] for k in bands])


# Clean datasets


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_clean_grey_labels_of_any_depth(data, bits):
    info = TWO if bits == 1 else FIVE
    for ids in ([0, 1, 1, 0], [1, 1, 0, 0]):
        data.add([0] * 4, label=png(bands_of(ids), bits))
    assert data.found(info) == []
    assert data.audit(info).class_pixels[:2].tolist() == [320, 320]


def test_clean_palette_labels(data):
    for indices in ([0, 1, 2, 3], [4, 3, 2, 1], [2, 2, 2, 0]):
        data.add([0] * 4, label=indexed(indices, COLORS))
    assert data.found() == []
    assert data.found(COLORED) == []
    assert data.audit().class_pixels.tolist() == [160, 160, 400, 160, 80]


def test_clean_colour_labels(data):
    data.add([0] * 4, label=colored([0, 1, 2, 3])).add([0] * 4, label=colored([4, 4, 1, 0]))
    data.add([0] * 4, label=np.dstack([colored([0, 1, 2, 3]), np.full((16, 20), 255, np.uint8)]))
    assert data.found(COLORED) == []
    assert data.audit(COLORED).class_pixels.tolist() == [240, 240, 160, 160, 160]


def test_labels_of_16_and_32_bits_whose_ids_fit(data):
    ids = bands_of([0, 1, 2, 4])
    data.add([0, 1, 2, 3])
    data.add([0] * 4, label=png(ids, 16))
    data.add([0] * 4, label=tiff(ids.astype("<i4"), 32, sample_format=2), label_suffix=".tif")
    assert data.found() == []
    assert data.audit().class_pixels.tolist() == [240, 240, 240, 80, 160]


# Palettes


def test_palettes_that_differ_from_file_to_file(data):
    """As `quantize` saves them: each file's own order of the same colours."""
    data.add([0] * 4, label=indexed([0, 1, 2, 2], [COLORS[0], COLORS[1], COLORS[2]]))
    data.add([0] * 4, label=indexed([0, 1, 2, 2], [COLORS[0], COLORS[1], COLORS[2]]))
    data.add([0] * 4, label=indexed([0, 1, 2, 2], [COLORS[0], COLORS[2], COLORS[1]]))
    kind, message, paths = only(data.errors())
    assert kind == "palettes differ"
    assert re.search(r"index 1 .*\[200, 0, 0\].*most.*\[0, 200, 0\]", message)
    assert '"label_format": "colors"' in message
    assert paths == ("2_label.png",)
    by_color = replace(COLORED, label_format="colors")
    assert data.found(by_color) == []
    assert data.audit(by_color).class_pixels.tolist() == [240, 80 + 80 + 160, 160 + 160 + 80, 0, 0]


def test_entries_that_no_pixel_uses_and_palettes_that_repeat_the_index_say_nothing(data):
    data.add([0] * 4, label=indexed([0, 1, 1, 1], [COLORS[0], COLORS[1], (9, 9, 9)]))
    data.add([0] * 4, label=indexed([0, 1, 1, 1], [COLORS[0], COLORS[1], (8, 8, 8)]))
    data.add([0] * 4, label=indexed([0, 1, 2, 3], [(i, i, i) for i in range(4)]))
    assert data.found() == []


def test_palettes_that_differ_between_the_lists(data, tmp_path):
    data.add([0] * 4, label=indexed([0, 1, 2, 3], COLORS)).add([0] * 4, label=indexed([0, 1, 2, 3], COLORS[::-1]))
    lists = [data.pairs[:1], data.pairs[1:]]
    reports = [audit_list(name, tmp_path, pairs, FIVE, num_threads=1) for name, pairs in zip("ab", lists, strict=True)]
    assert not any(finding.is_error for report in reports for finding in report.findings)
    finding = only(findings_about_both(tmp_path, lists, reports, FIVE))
    assert (finding.kind, finding.is_error, finding.paths) == ("palettes differ", True, ("1_label.png",))
    assert audit_as_dict(reports, FIVE, [finding])["findings"][0]["error"]


# Bit depths


def test_one_bit_beside_eight_where_white_may_be_255(data):
    info = replace(TWO, ignored_ids=(255,))
    data.add([0, 1, 255, 0]).add([0] * 4, label=png(bands_of([0, 1, 1, 0]), 1)).add(
        [0] * 4, label=png(bands_of([0] * 4), 1)
    )
    kind, message, paths = only(data.errors(info))
    assert kind == "bits differ"
    assert re.search(r"1-bit.* 1 .* 255 .*8-bit", message)
    assert paths == ("1_label.png",)


def test_one_bit_beside_eight_where_that_cannot_matter(data):
    data.add([0, 1, 1, 0]).add([0] * 4, label=png(bands_of([0, 1, 1, 0]), 1))
    finding = only(data.found(TWO))
    assert (finding.kind, finding.is_error, finding.paths) == ("bits differ", False, ("1_label.png",))
    assert "1, 8 bits" in finding.message


def test_all_of_one_bit_where_the_classes_are_0_and_255(data):
    info = replace(TWO, label_ids=(0, 255))
    data.add([0] * 4, label=png(bands_of([0, 1, 1, 0]), 1))
    assert any(kind == "bits differ" and re.search(r"1-bit.* 1 .* 255 .*8-bit", m) for kind, m, _ in data.errors(info))


def test_two_and_four_bits_beside_eight(data):
    info = replace(FIVE, ignored_ids=(170,))
    data.add([0, 1, 2, 170]).add([0] * 4, label=png(bands_of([0, 1, 1, 0]), 2)).add(
        [0] * 4, label=png(bands_of([0, 1, 2, 0]), 2)
    )
    data.add([0] * 4, label=png(bands_of([0, 1, 2, 4]), 4))
    kind, message, paths = only(data.errors(info))
    assert kind == "bits differ"
    assert re.search(r"2-bit.* 2 .* 170 .*8-bit", message)
    assert paths == ("2_label.png",)


def test_a_palette_of_black_and_white_beside_grey(data):
    info = replace(TWO, ignored_ids=(255,))
    data.add([0, 1, 1, 0]).add([0] * 4, label=indexed([0, 1, 1, 0], [(0, 0, 0), (255, 255, 255)]))
    assert data.found(info) == []
    data.add([0, 255, 1, 0])
    kind, message, paths = only(data.errors(info))
    assert (kind, paths) == ("bits differ", ("1_label.png",))
    assert re.search(r"palette.* 1 .* 255 .*8-bit", message)


# Notes


def test_lossy_masks_are_never_clean(data):
    info = replace(TWO, label_format="either", label_ids=(0, 200))
    exact = np.zeros((16, 20), np.uint8)
    data.add([0] * 4, label=exact, label_suffix=".jpg")
    data.add([0] * 4, label=np.dstack([exact] * 3), label_suffix=".webp")
    data.add([0, 0, 200, 200]).add([0, 0, 200, 200])
    found = {finding.message.split()[0]: finding for finding in data.found(info)}
    assert {(finding.kind, finding.is_error) for finding in found.values()} == {("lossy mask", False)}
    assert "save masks as PNG" in found["JPEG"].message
    assert (found["JPEG"].paths, found["JPEG"].share) == (("0_label.jpg",), 0.25)
    assert found["WEBP"].paths == ("1_label.webp",)


def test_lossy_masks_whose_classes_are_mixed_up_are_an_error(data):
    data.add([0] * 4, label=np.zeros((16, 20), np.uint8), label_suffix=".jpg")
    kind, message, paths = only(data.errors())
    assert (kind, paths) == ("lossy mask", ("0_label.jpg",))
    assert "save it as PNG" in message


def test_a_jpeg_under_the_name_of_a_png(data, tmp_path):
    data.add([0] * 4)
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(tmp_path / "0_label.png", "JPEG")
    assert only(data.found()).kind == "lossy mask"


def test_transparent_pixels_count_as_the_colours_that_they_hide(data):
    alpha = np.full((16, 20), 255, np.uint8)
    alpha[:4] = 0
    data.add([0] * 4, label=np.dstack([colored([1, 0, 0, 0]), alpha]))
    data.add([0] * 4, label=colored([0, 1, 2, 3]))
    finding = only(data.found(COLORED))
    assert (finding.kind, finding.is_error, finding.share) == ("transparent mask", False, 80 / 640)
    assert "colours" in finding.message
    line = format_finding(finding, "train")
    assert line.startswith("note: train: transparent mask: ")
    assert line.endswith(" (12.5 % of all pixels) [0_label.png]")
    (row,) = (
        row for row in audit_as_dict([data.audit(COLORED)], COLORED)["lists"]["train"]["findings"] if "share" in row
    )
    assert row == {
        "kind": finding.kind,
        "error": False,
        "message": finding.message,
        "share": 0.125,
        "paths": ["0_label.png"],
    }


def test_a_palette_with_alpha_is_remarked_where_it_is_in_use(data):
    data.add([0] * 4, label=indexed([0, 1, 2, 2], COLORS), transparency=b"\xff\xff\x80")
    data.add([0] * 4, label=indexed([0, 1, 1, 1], COLORS), transparency=b"\xff\xff\x80")
    finding = only(data.found())
    assert (finding.kind, finding.share, finding.paths) == ("transparent mask", 160 / 640, ("0_label.png",))


@pytest.mark.parametrize(
    ("chunk", "remarked"),
    [
        ((b"gAMA", (100_000).to_bytes(4, "big")), True),  # linear
        ((b"gAMA", (45_455).to_bytes(4, "big")), False),  # of sRGB: nothing changes
        ((b"iCCP", b"name\0\0" + zlib.compress(b"profile")), True),
    ],
)
def test_colour_profiles(data, chunk, remarked):
    data.add([0] * 4, label=png(bands_of([0, 1, 2, 3]), 8, chunks=[chunk])).add([0, 1, 2, 3])
    found = data.found()
    assert [(f.kind, f.is_error, f.share) for f in found] == [("mask with a colour profile", False, 0.5)] * remarked


def test_interlaced_masks_are_read_rightly(data):
    data.add([0] * 4, label=png(bands_of([0, 1, 2, 4]), 8, interlaced=True)).add([3, 3, 3, 3])
    finding = only(data.found())
    assert (finding.kind, finding.is_error, finding.share) == ("interlaced mask", False, 0.5)
    assert data.audit().class_pixels.tolist() == [80, 80, 80, 320, 80]


def test_masks_of_several_pages(data, tmp_path):
    data.add([0] * 4)
    pages = [Image.fromarray(bands_of([k] * 4)) for k in (1, 2)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    data.pairs = [("0.png", "mask.tif")]
    finding = only(data.found())
    assert (finding.kind, finding.is_error) == ("mask of several pages", False)
    assert "first of 2 pages" in finding.message
    assert data.audit().class_pixels.tolist() == [0, 320, 0, 0, 0]


def test_a_palette_that_gives_indices_the_colours_of_other_classes(data):
    info = replace(COLORED, palette=(*COLORS[:3], (1, 2, 3), (4, 5, 6)), chosen_colors=(0, 1, 2))
    data.add([0] * 4, label=indexed([0, 1, 2, 2], [COLORS[0], COLORS[2], COLORS[1]]))
    kind, message, paths = only(data.errors(info))
    assert (kind, paths) == ("palette contradicts ids", ("0_label.png",))
    assert re.search(r"index 1 .*'b'.*'c'.*palette.*\[0, 200, 0\]", message)
    assert '"label_format": "colors", or "ids"' in message


def test_transparent_pixels_whose_colour_says_nothing(data):
    alpha = np.full((16, 20), 255, np.uint8)
    alpha[:4] = 0
    data.add([0] * 4, label=np.dstack([colored([0, 0, 1, 2]), alpha]))
    kind, message, paths = only(data.errors(COLORED))
    assert (kind, paths) == ("transparent mask", ("0_label.png",))
    assert re.search(r'25 % .*"transparent": ', message)
    assert data.found(replace(COLORED, transparent="ignore")) == []
    assert data.audit(replace(COLORED, transparent="ignore")).class_pixels.tolist() == [80, 80, 80, 0, 0]


def test_snapped_pixels_are_told_with_their_share(data):
    mask = colored([0, 0, 1, 1])
    mask[7] = (60, 0, 0)  # nearer to the black above
    data.add([0] * 4, label=mask)
    finding = only(data.found(replace(COLORED, snap=True)))
    assert (finding.kind, finding.is_error, finding.share) == ("snapped pixels", False, 20 / 320)
    assert data.audit(replace(COLORED, snap=True)).class_pixels[:2].tolist() == [160, 160]


def test_many_messages_of_one_kind_are_told_as_one(data):
    for number in range(20):
        alpha = np.full((16, 20), 255, np.uint8)
        alpha[0, : number + 1] = 0
        data.add([0] * 4, label=np.dstack([colored([0, 0, 1, 2]), alpha]))
    findings = [finding for finding in data.found(COLORED) if finding.is_error]
    assert len(findings) == 9
    assert findings[-1].message.startswith("and others of this kind")
    assert sum(len(finding.paths) for finding in findings) == 20


# Smoothed edges


def blended(a, b, steps):
    return [np.round(np.array(a) + (np.array(b) - a) * step / (steps + 1)).astype(int) for step in range(1, steps + 1)]


def test_smoothed_edges_of_colour_masks(data):
    mask = colored([0, 0, 1, 2])
    mask[8, :4] = blended(COLORS[0], COLORS[1], 4)
    mask[12, :4] = blended(COLORS[1], COLORS[2], 4)
    data.add([0] * 4, label=mask).add([0] * 4, label=colored([0, 1, 2, 3]))
    finding = only([finding for finding in data.found(COLORED) if finding.is_error])
    assert (finding.kind, finding.share, finding.paths) == ("smoothed edges", 8 / 640, ("0_label.png",))
    assert "0.31 % and 5 more" in finding.message
    assert "8 colours" in finding.message
    assert "save them without" in finding.message


def test_a_forgotten_class_between_two_others_is_no_smoothing(data):
    mask = colored([0, 0, 4, 4])
    mask[0] = (100, 100, 100)
    data.add([0] * 4, label=mask)
    assert only(data.errors(COLORED))[0] == "unknown colour"


def test_smoothed_edges_of_ids(data):
    info = replace(TWO, label_ids=(0, 255))
    ids = bands_of([0, 0, 255, 255])
    ids[8, :16] = range(10, 250, 15)
    data.add([0] * 4, label=ids)
    kind, message, paths = only(data.errors(info))
    assert (kind, paths) == ("smoothed edges", ("0_label.png",))
    assert "16 ids" in message
    assert "save them without" in message


def test_jpeg_changed_ids(data):
    rows = np.random.default_rng(0).integers(0, 2, (16, 20)).astype(np.uint8) * 200
    info = replace(TWO, label_ids=(0, 200))
    data.add([0] * 4, label=rows, label_suffix=".jpg")
    kind, message, paths = only(data.errors(info))
    assert (kind, paths) == ("unknown id", ("0_label.jpg",))
    assert re.search(r'JPEG.*PNG.*"snap": true', message)


@pytest.mark.parametrize("is_grey", [False, True])
def test_a_photograph_for_a_label(data, is_grey):
    photo = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    data.add([0, 1, 2, 3]).add([0], image=photo, label=photo[..., 0] if is_grey else photo)
    kind, message, paths = only(data.errors(FIVE if is_grey else COLORED))
    assert (kind, paths) == ("photograph as label", ("1_label.png",))
    assert message.startswith("looks like a photograph: ")


def test_of_many_colours_a_few_are_named_to_paste(data):
    label = np.zeros((40, 60, 3), np.uint8)
    label[:, 1::2] = np.arange(30, 70, dtype=np.uint8)[:, None, None]
    data.add([0], image=label, label=label)
    assert only(data.errors(COLORED))[1].count('"name"') == 3


def test_an_id_that_an_own_description_lacks(data):
    own = replace(FIVE, label_format="either")
    kind, message, _ = only(data.add([0, 1, 2, 9]).errors(own))
    assert kind == "unknown id"
    assert re.search(r"id 9 .* 0 to 4 .*dataset\.json.*\blist\b", message)
