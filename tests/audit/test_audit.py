"""The audit: each classic mistake is planted, and the fix is read in what is found."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.audit.audited import FIVE, RNG, Data, bands_of, only

from ovenet.audit import (
    Finding,
    audit_as_dict,
    audit_list,
    findings_about_both,
    format_audit,
    format_finding,
    missing_files,
    read_suggested_weights,
    shared_images,
    suggested_weights,
)
from ovenet.data.catalog import CATALOG
from ovenet.data.info import DatasetInfo

CRACKS = DatasetInfo("cracks", ("ground", "crack"), ((0, 0, 0), (1, 1, 1)), (0, 1), ignored_ids=(255,))


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def test_counts_are_right(data):
    data.add([0, 1, 1, 4]).add([2, 2, 2, 2])
    report = data.audit(replace(FIVE, ignored_ids=(255,)))
    assert report.class_pixels.tolist() == [80, 160, 320, 0, 80]
    assert report.class_images.tolist() == [1, 1, 1, 0, 1]
    assert report.num_pixels == 640
    assert report.sizes == (((16, 20), 2),)
    assert not any(finding.is_error for finding in report.findings)
    assert re.fullmatch("no labelled pixel of d: .*", data.notes().pop("absent class"))
    assert set(data.notes()) == {"absent class"}


# The eight classic mistakes, one test each


def test_1_foreground_saved_as_255(data):
    data.add([0, 0, 255, 255]).add([0, 0, 0, 0])
    kind, message, paths = only(data.errors())
    assert kind == "255 as foreground"
    assert '"id": 255' in message
    assert paths == ("0_label.png",)
    assert not data.errors(replace(CRACKS, label_ids=(0, 255), ignored_ids=()))


def together(folder, lists, info, *, num_pairs=None):
    """What the audit finds in two lists together, of which it saw the first pairs."""
    reports = [audit_list("one", folder, pairs[:num_pairs], info, num_threads=2) for pairs in lists]
    assert not any(finding.is_error for report in reports for finding in report.findings)
    return findings_about_both(folder, lists, reports, info)


def test_255_as_foreground_where_255_is_ignored_is_judged_over_all_pairs_of_both_lists(data, tmp_path):
    for _ in range(6):
        data.add([0, 255, 255, 0])
    lists = [data.pairs[:4], data.pairs[4:]]
    finding = only(together(tmp_path, lists, CRACKS))
    assert finding.kind == "255 as foreground"
    assert finding.is_error  # nothing but the ground would be learnt
    assert '"id": 255' in finding.message
    finding = only(together(tmp_path, lists, CRACKS, num_pairs=1))
    assert not finding.is_error
    assert "labels looked at" in finding.message
    with_crack = Data(tmp_path).add([0, 1, 255, 0], name="crack").pairs
    assert not together(tmp_path, [data.pairs, with_crack], CRACKS)  # ignored borders, and no crack in one list
    assert not together(tmp_path, [with_crack, data.pairs], CRACKS)
    assert not together(tmp_path, lists, replace(FIVE, ignored_ids=(255,)))


def test_grey_levels_of_colors_read_as_ids(data):
    """Of a dataset.json with grey colours and no ids."""
    info = DatasetInfo(
        "grey", ("a", "b", "c"), ((0, 0, 0), (128, 128, 128), (255, 255, 255)), (0, 1, 2), label_format="either"
    )
    data.add([0, 128, 255, 0])
    assert '"label_format": "colors"' in only(data.errors(info))[1]
    assert not data.notes(info)  # no class is absent of which nobody knows
    assert not data.errors(replace(info, label_format="colors"))
    data.add([0, 5, 0, 0])
    assert "label_format" not in only(data.errors(info))[1]


def test_classes_are_not_called_absent_where_a_label_could_not_be_read(data):
    colors = tuple((10 * i, 200, 0) for i in range(5))
    info = replace(FIVE, palette=colors, chosen_colors=tuple(range(5)), label_format="either")
    picture = Image.fromarray(bands_of([0, 1, 2, 2]))
    picture.putpalette([0, 200, 0, 20, 200, 0, 10, 200, 0])
    data.add([0] * 4, label=picture)
    assert only(data.errors(info))[0] == "palette contradicts ids"
    assert not data.notes(info)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "an empty file is no image"),
        (b"<html>no such file</html>", "a page of HTML is no image"),
        (b"\0\1\2", "it is no image, or damaged"),
    ],
)
def test_files_that_are_no_images_are_called_so(data, content, why):
    data.add([0, 1, 2, 3], image=content).add([0] * 4, label=content)
    assert {(message, paths) for _, message, paths in data.errors()} == {
        (f"the image cannot be read ({why}); replace it", ("0.png",)),
        (f"the label cannot be read ({why}); replace it", ("1_label.png",)),
    }


def test_a_share_of_all_pixels_is_written_out():
    finding = Finding("kind", False, "message", (), 1.0)
    assert format_finding(finding, "train") == "note: train: kind: message (100 % of all pixels)"
    assert "(0.0123 % of" in format_finding(replace(finding, share=0.0001234), "train")


def test_2_rgb_mask_read_as_ids(data):
    data.add([0, 1, 2, 3]).add([0], label=np.zeros((4, 20, 3), np.uint8))
    kind, message, paths = only(data.errors())
    assert kind == "RGB mask"
    assert "dataset.json" in message
    assert paths == ("1_label.png",)


def test_3_ids_where_train_ids_are_expected_and_the_other_way(data, tmp_path):
    data.add([7, 8, 11, 23]).add([21, 24, 26, 33])
    kind, message, paths = only(data.errors(CATALOG["bdd100k"]))
    assert kind == "wrong kind of ids"
    assert "list the *_labelTrainIds.png files" in message
    assert set(paths) == {"0_label.png", "1_label.png"}
    assert not data.errors(CATALOG["cityscapes"])
    (tmp_path / "b").mkdir()
    train_ids = Data(tmp_path / "b").add([0, 1, 2, 255]).add([8, 10, 13, 18])
    kind, message, _ = only(train_ids.errors(CATALOG["cityscapes"]))
    assert kind == "wrong kind of ids"
    assert "list the *_labelIds.png files" in message
    (tmp_path / "c").mkdir()
    without_void = Data(tmp_path / "c").add([0, 1, 2, 5]).add([7, 8, 10, 11]).add([13, 18, 0, 0])
    kind, _, paths = only(without_void.errors(CATALOG["acdc"]))
    assert kind == "wrong kind of ids"
    assert len(paths) == 3


def test_255_among_label_ids_is_a_mistake_where_the_dataset_does_not_ignore_it(data):
    """The public OVeNet leaves 255 of ACDC's label ids as it is, which is its ignore label."""
    data.add([7, 8, 255])
    assert data.errors(CATALOG["acdc"]) == []
    assert only(data.errors(CATALOG["cityscapes"]))[0] == "wrong kind of ids"


def test_4_off_by_one(data, tmp_path):
    data.add([1, 2, 3, 4]).add([5, 5, 1, 1])
    kind, message, _ = only(data.errors())
    assert kind == "off by one"
    assert "subtract 1" in message
    (tmp_path / "low").mkdir()
    low = Data(tmp_path / "low").add([0, 1, 2, 3])
    from_one = replace(FIVE, label_ids=(1, 2, 3, 4, 5))
    kind, message, _ = only(low.errors(from_one))
    assert kind == "off by one"
    assert "add 1" in message
    (tmp_path / "ade").mkdir()
    shifted = Data(tmp_path / "ade").add([0, 149, 255, 3])
    kind, message, _ = only(shifted.errors(CATALOG["ade20k"]))
    assert kind == "off by one"
    assert "shifted already" in message


def test_5_wrong_class_count(data):
    data.add([0, 1, 2, 3]).add([4, 5, 6, 7])
    kind, message, paths = only(data.errors())
    assert kind == "wrong class count"
    assert re.search(r"ids up to 7 .*five .*0 to 4 .*none.*dataset\.json", message)
    assert paths == ("1_label.png",)


def test_6_image_and_label_swapped_or_of_different_size(data, tmp_path):
    data.add([0, 1, 2, 3])
    photograph = RNG.integers(0, 256, (16, 20, 3)).astype(np.uint8)
    labels = np.repeat([0, 1, 2, 3], 4)[:, None].repeat(20, axis=1).astype(np.uint8)
    data.add([0], image=labels, label=photograph)
    data.add([0], image=labels, label=photograph[..., 0])  # a grey photograph
    kind, message, paths = only(data.errors())
    assert kind == "image and label swapped"
    assert "swap" in message
    assert paths == ("1_label.png", "2_label.png")
    (tmp_path / "sizes").mkdir()
    sizes = Data(tmp_path / "sizes").add([0, 1], label=np.zeros((8, 19), np.uint8))
    kind, message, _ = only(sizes.errors())
    assert kind == "size differs"
    assert re.search("19x8.*20x8", message)


def test_7_grey_alpha_and_16_bit_images(data):
    grey = RNG.integers(0, 256, (16, 20)).astype(np.uint8)
    data.add([0, 1, 2, 3], image=grey)
    data.add([0, 1, 2, 4], image=np.dstack([grey] * 4))
    data.add([0, 1, 2, 4], image=grey.astype(np.uint16) * 256)
    assert not data.errors()
    notes = data.notes()
    assert "repeated three times" in notes["grey image"]
    assert "flatten the image" in notes["image with alpha"]
    assert "rescale it to 8 bits" in notes["16-bit image"]


def test_7_16_bit_colour_images(data, tmp_path):
    """Pillow reads them as 8 bits and says nothing."""
    import cv2

    cv2.imwrite(str(tmp_path / "deep.png"), RNG.integers(0, 65536, (16, 20, 3)).astype(np.uint16))
    data.add([0, 1, 2, 3])
    data.pairs = [("deep.png", "0_label.png")]
    assert "upper 8 of its 16 bits" in data.notes()["16-bit image"]


def test_8_palette_images(data):
    picture = Image.fromarray(RNG.integers(0, 256, (16, 20, 3)).astype(np.uint8)).quantize(16)
    data.add([0, 1, 2, 3], image=picture)
    assert "correct the list" in data.notes()["palette image"]
    ids = Image.fromarray(np.repeat([0, 1, 2, 4], 4)[:, None].repeat(20, axis=1).astype(np.uint8))
    ids = ids.convert("P")
    ids.putpalette([7] * 768)
    data.add([0], label=ids)
    assert data.audit().class_pixels.tolist() == [160, 160, 160, 80, 80]  # a label's palette means nothing


# And others


def test_files_that_are_missing_cut_off_or_no_images(data, tmp_path):
    for _ in range(5):
        data.add([0, 1, 2, 3])
    (tmp_path / "0.png").unlink()
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:-40])
    (tmp_path / "2_label.png").write_bytes((tmp_path / "2_label.png").read_bytes()[:60])
    (tmp_path / "3_label.png").write_text("text")
    errors = data.errors()
    assert {kind for kind, _, _ in errors} == {"unreadable file"}
    assert {path for _, _, paths in errors for path in paths} == {"0.png", "1.png", "2_label.png", "3_label.png"}
    assert missing_files(tmp_path, data.pairs) == ["0.png"]


def test_damage_inside_an_image_is_found_by_decoding(data, tmp_path):
    data.add([0, 1, 2, 3])
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "0.png").write_bytes(content)
    assert not data.errors()
    assert only(data.errors(decode_images=True))[2] == ("0.png",)


def test_a_jpeg_with_something_behind_its_end_is_sound(data, tmp_path):
    data.add([0, 1, 2, 3])
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"maker's notes" * 10)
    data.pairs = [("a.jpg", "0_label.png")]
    assert not data.errors()


def test_the_ignore_value_of_other_tools(data):
    data.add([0, 1, 2, 255]).add([3, 4, 0, 0])
    kind, message, _ = only(data.errors())
    assert kind == "255 is unknown"
    assert 'add it to "ignore"' in message


def test_exif_rotation(data, tmp_path):
    data.add([0, 1, 2, 3])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    data.pairs = [("photo.jpg", "0_label.png")]
    assert '"upright": true' in only(data.errors())[1]
    assert "read as stored" in data.notes()["EXIF-rotated image"]
    assert not data.errors(replace(FIVE, upright=True))
    assert "turned upright" in data.notes(replace(FIVE, upright=True))["EXIF-rotated image"]


def test_colour_masks_of_an_own_dataset(data):
    info = replace(FIVE, label_format="either", palette=((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)))
    mask = np.zeros((16, 20, 3), np.uint8)
    mask[:4, :, 0] = 9
    data.add([0], label=mask, image=mask + 1)
    assert data.audit(info).class_pixels.tolist() == [240, 80, 0, 0, 0]
    mask[0, 0] = (8, 0, 0)
    data.add([0], label=mask, image=mask + 1)
    kind, message, _ = only(data.errors(info))
    assert kind == "unknown colour"
    assert "[8, 0, 0]" in message


def test_all_forgotten_colours_are_told_at_once_with_what_to_paste(data):
    """One colour in every mask, another in one of them: one finding, and the classes are counted all the same."""
    info = replace(FIVE, label_format="either", palette=((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)))
    for number in range(20):
        mask = np.zeros((16, 20, 3), np.uint8)
        mask[:4, :, 0] = 9
        mask[8] = (1, 2, 3)  # 20 of 320 pixels
        if not number:
            mask[9, :10] = (4, 5, 6)  # 10 of 6400 in all
        data.add([0], label=mask, image=mask + 1)
    report = data.audit(info)
    assert report.class_pixels.tolist() == [20 * 220 - 10, 20 * 80, 0, 0, 0]
    kind, message, paths = only(data.errors(info))
    assert kind == "unknown colour"
    assert len(paths) == 20
    assert "2 colours are no class" in message
    assert "[1, 2, 3] 6.2 %, [4, 5, 6] 0.16 %" in message
    assert '{"name": "…", "color": [1, 2, 3]}, {"name": "…", "color": [4, 5, 6]}' in message
    assert '"ignore": [[1, 2, 3], [4, 5, 6]]' in message
    (finding,) = report.findings[:1]
    assert format_finding(finding, "train").endswith(f"[{', '.join(paths[:3])} and 17 more]")


def test_colours_of_jpeg_masks_are_not_to_be_pasted(data, tmp_path):
    info = replace(FIVE, label_format="colors", palette=((0, 0, 0), (90, 0, 0), (0, 90, 0), (0, 0, 90), (90, 90, 90)))
    mask = np.zeros((16, 20, 3), np.uint8)
    mask[:5, :7, 0] = 90
    data.add([0], label=mask, image=mask + 1)
    Image.fromarray(mask).save(tmp_path / "mask.jpg")
    data.pairs = [(data.pairs[0][0], "mask.jpg")]
    kind, message, _ = only(data.errors(info))
    assert kind == "unknown colour"
    assert re.search("JPEG.*PNG", message)
    assert '"name"' not in message


def test_labels_without_content_and_repeated_lines(data):
    info = replace(FIVE, ignored_ids=(9,))
    data.add([9, 9, 9, 9]).add([0, 1, 2, 3])
    data.pairs.append(data.pairs[1])
    notes = data.notes(info)
    assert "nothing is learned" in notes["label without a class"]
    assert "counts more than once" in notes["repeated image"]


def test_lines_without_a_label(data):
    data.add([0, 1, 2, 3]).add([0, 0, 0, 4])
    data.pairs[1] = ("1.png", None)
    kind, message, paths = only(data.errors())
    assert kind == "line without a label"
    assert "`image label`" in message
    assert paths == ("1.png",)


def test_an_exif_tag_in_a_png(data, tmp_path):
    data.add([0, 1, 2, 3])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(tmp_path / "0.png", exif=exif)
    assert '"upright": true' in only(data.errors())[1]
    assert not data.errors(replace(FIVE, upright=True))


def test_training_images_in_the_validation_list():
    assert shared_images([("a", "x"), ("b", "y")], [("b", "y"), ("c", "z")]) == ["b"]


def test_weights_are_those_of_the_formula():
    # p = 0.75, 0.25: 1 / ln(1.77) = 1.7514, 1 / ln(1.27) = 4.1838; their mean is 2.9676
    np.testing.assert_allclose(suggested_weights(np.array([300, 100, 0])), [0.59017, 1.40983, 1.0], atol=1e-4)
    assert suggested_weights(np.zeros(3)).tolist() == [1, 1, 1]


def test_the_table_and_the_json_say_what_was_counted(data, tmp_path):
    data.add([0, 1, 1, 4]).add([255, 2, 2, 2])
    report = data.audit()
    text = format_audit([report], FIVE)
    row = next(line.split() for line in text.splitlines() if line.startswith("b "))
    assert row[:3] == ["b", "25.000", "1"]
    assert "train: 2 pairs (2 of 20x16)" in text
    assert any(
        line.startswith("error: train: 255 is unknown: ") and "[1_label.png]" in line for line in text.splitlines()
    )
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit_as_dict([report], FIVE)))
    content = json.loads(path.read_text())
    assert content["lists"]["train"]["class_pixels"] == [80, 160, 240, 0, 80]
    assert content["lists"]["train"]["id_pixels"]["255"] == 80
    np.testing.assert_allclose(read_suggested_weights(path, FIVE), suggested_weights(report.class_pixels), atol=1e-4)


def test_weights_of_other_classes_are_refused(data, tmp_path):
    data.add([0, 1, 1, 4])
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit_as_dict([data.audit()], FIVE)))
    with pytest.raises(ValueError, match=r"LOSS\.CLASS_WEIGHTS .*audit\.json: .*five.* 5 .*camvid.* 11"):
        read_suggested_weights(path, CATALOG["camvid"])
    path.write_text("{}")
    with pytest.raises(ValueError, match="no audit"):
        read_suggested_weights(path, FIVE)
    with pytest.raises(ValueError, match="cannot be read"):
        read_suggested_weights(tmp_path / "none.json", FIVE)


def test_images_too_large_to_be_read_are_named(data, monkeypatch):
    """Pillow refuses what may be a decompression bomb already when it opens the file."""
    data.add([0, 1, 2, 3])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    errors = data.errors()
    assert {kind for kind, _, _ in errors} == {"unreadable file"}
    assert {path for _, _, paths in errors for path in paths} == {"0.png", "0_label.png"}
