"""A folder of images and masks becomes a dataset and an experiment."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tests.data.pixel_files import png

from ovenet.config import load_config
from ovenet.data.description import own_description
from ovenet.data.labels import LabelDecoder
from ovenet.errors import UserError
from ovenet.preparation.draft import read_draft, write_draft, write_experiment
from ovenet.preparation.prepare import prepare_dataset

SIZE = (40, 60)  # height and width
NOISE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A function that writes ten images with masks made of 8-bit ids or colours; returns the dataset's folder."""

    def write(masks, suffix=".png"):
        for kind in ("images", "labels"):
            (tmp_path / "cracks" / kind).mkdir(parents=True, exist_ok=True)
        for index, mask in enumerate(masks):
            image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            image.save(tmp_path / f"cracks/labels/{index}{suffix}")
            Image.new("RGB", image.size, (index, 0, 0)).save(tmp_path / f"cracks/images/{index}.png")
        return tmp_path / "cracks"

    return write


def ids(*parts):
    """A mask whose rows have these ids, in equal parts."""
    return np.repeat(np.array(parts, np.uint8), SIZE[0] // len(parts))[:, None].repeat(SIZE[1], axis=1)


def test_ids(folder):
    root = folder([ids(0, 7, 7, 255)] * 10)
    draft = read_draft(root)
    assert draft.shares == {7: 0.5, 0: 0.25, 255: 0.25}
    assert draft.size == (60, 40)
    write_draft(draft, root)
    content = json.loads((root / "dataset.json").read_text())
    assert [(row["name"], row["id"]) for row in content["classes"]] == [("class 0", 0), ("class 7", 7)]
    assert content["ignore"] == [255]
    assert prepare_dataset("cracks", root.parent).num_lines["trainval"] == 10


def test_colours(folder):
    palette = np.array([[0, 0, 0], [200, 10, 30], [255, 255, 255]], np.uint8)
    root = folder([palette[ids(0, 0, 0, 1)]] * 8 + [palette[ids(2, 2, 1, 1)]] * 2)
    draft = read_draft(root)
    assert list(draft.shares) == [(0, 0, 0), (200, 10, 30), (255, 255, 255)]
    assert sum(draft.shares.values()) == pytest.approx(1)
    write_draft(draft, root)
    content = json.loads((root / "dataset.json").read_text())
    assert [row["color"] for row in content["classes"]] == [[0, 0, 0], [200, 10, 30]]
    assert content["ignore"] == [[255, 255, 255]]
    assert prepare_dataset("cracks", root.parent).num_lines["trainval"] == 10


def test_the_experiment_loads_from_anywhere(folder, tmp_path):
    draft = read_draft(folder([ids(0, 1)] * 10))
    write_experiment("cracks", tmp_path / "elsewhere.yaml", size=draft.size, num_classes=len(draft.classes))
    cfg = load_config(tmp_path / "elsewhere.yaml")
    assert (cfg.DATASET.DATASET, cfg.DATASET.NUM_CLASSES, cfg.MODEL.SEED.NAME) == ("cracks", 2, "none")
    assert (list(cfg.TRAIN.IMAGE_SIZE), cfg.TRAIN.BASE_SIZE) == ([32, 32], 60)


def test_a_name_that_looks_like_a_number_stays_a_name(folder, tmp_path):
    write_experiment("2024", tmp_path / "a.yaml", size=(20, 16), num_classes=2)
    assert load_config(tmp_path / "a.yaml").DATASET.DATASET == "2024"


@pytest.mark.parametrize(
    ("masks", "suffix", "message"),
    [
        ([ids(3)] * 10, ".png", "1 value.*two classes"),
        (
            [ids(0, 1)] * 5 + [ids(0, 1) + np.uint16(300)] * 5,
            ".png",
            r"5\.png: the mask holds the id 300; expected",
        ),
        (
            [np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)] * 10,
            ".png",
            r"0\.png: looks like a photograph: \d+ ids or colours",
        ),
        ([ids(0, 1)] * 5 + [np.zeros((*SIZE, 3), np.uint8)] * 5, ".png", "some masks are ids and some are colours"),
        (
            [np.repeat(ids(0, 1, 0, 1)[..., None], 3, axis=2)] * 10,
            ".jpg",
            r"1 value.*JPEG.*labels/0\.jpg",
        ),
    ],
)
def test_what_cannot_be_classes(folder, masks, suffix, message):
    with pytest.raises(UserError, match=message):
        read_draft(folder(masks, suffix))


def test_an_image_without_a_mask_is_left_out(folder):
    root = folder([ids(0, 1)] * 9 + [ids(0, 7)])
    (root / "labels/9.png").unlink()
    draft = read_draft(root)
    assert (draft.num_masks, set(draft.shares)) == (9, {0, 1})


BLACK, RED, BLUE, GREY, WHITE = (0, 0, 0), (255, 0, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)
CLASSES = (BLACK, RED, BLUE, WHITE)


def painted(indices, *colors):
    """A mask of colours."""
    return np.array(colors or CLASSES, np.uint8)[indices]


@pytest.mark.parametrize("masks", [ids(0, 1, 255, 255), painted(ids(0, 1, 3, 3))], ids=["grey", "colours"])
def test_what_covers_most_pixels_is_not_ignored_unasked(folder, masks):
    draft = read_draft(folder([masks] * 10))
    assert (len(draft.classes), draft.ignore) == (3, [])
    assert re.search('covers the most pixels.*add it to "ignore"', draft.remarks[0])


def test_two_classes_are_left_beside_what_is_ignored(folder):
    with pytest.raises(UserError, match=r"1 value.*two classes"):
        read_draft(folder([ids(0, 255)] * 10), ignored=[255])


def test_what_a_begun_description_says_stays(folder):
    root = folder([ids(0, 1, 255, 255)] * 10)
    draft = read_draft(root, {"images": "images/*", "labels": "labels/*"}, ignored=[255, 7])
    assert draft.remarks == []
    write_draft(draft, root, {"ignore": [255, 7], "val_share": 0.5})
    content = json.loads((root / "dataset.json").read_text())
    assert (content["ignore"], content["val_share"]) == ([255, 7], 0.5)
    assert content["layouts"] == {"images": "images/*", "labels": "labels/*"}
    assert [row["id"] for row in content["classes"]] == [0, 1]


def reader(draft, root):
    """How training reads masks by the draft."""
    write_draft(draft, root)
    decoder = LabelDecoder(own_description(root / "dataset.json", root.name), 255)
    return lambda name: decoder.read(root / "labels" / name)


def as_drawn(draft, root, name):
    """A mask as training reads it by the draft, each pixel as its index in `CLASSES`."""
    order = [CLASSES.index(tuple(row["color"])) if tuple(row["color"]) in CLASSES else -1 for row in draft.classes]
    return np.array([*order, *[3] * (256 - len(order))])[reader(draft, root)(name)]


def test_palettes_that_differ_are_read_by_their_colours(folder):
    indices = [np.broadcast_to(np.where(np.arange(96) < black, 0, 1), (64, 96)) for black in [54] * 8 + [48]]
    indices.append(np.ones((64, 96), int))
    indices[-1][:32, :64] = 2
    # 61,440 pixels: 8 * 54 * 64 + 48 * 64 = 30,720 black, 32 * 64 = 2,048 blue, and the rest red.
    masks = [Image.fromarray(painted(one)).quantize(3) for one in indices]
    root = folder(masks)
    draft = read_draft(root)
    assert draft.shares == {BLACK: 30720 / 61440, RED: 28672 / 61440, BLUE: 2048 / 61440}
    assert [round(100 * share, 1) for share in draft.shares.values()] == [50.0, 46.7, 3.3]
    assert "palettes differ" in draft.remarks[0]
    for index, one in enumerate(indices):
        np.testing.assert_array_equal(as_drawn(draft, root, f"{index}.png"), one)
    assert json.loads((root / "dataset.json").read_text())["label_format"] == "colors"


def with_palette(indices, *colors):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([channel for color in colors for channel in color])
    return image


def test_one_palette_gives_ids_their_colours(folder):
    root = folder([with_palette(ids(0, 1), GREY, RED)] * 5 + [with_palette(ids(0, 0), GREY, RED, BLUE)] * 5)
    draft = read_draft(root)
    assert draft.remarks == []
    assert [(row["id"], row["color"]) for row in draft.classes] == [(0, list(GREY)), (1, list(RED))]
    np.testing.assert_array_equal(reader(draft, root)("0.png"), ids(0, 1))


def test_palettes_that_differ_in_unused_entries_alone_are_one(folder):
    root = folder([with_palette(ids(0, 1), GREY, RED, BLUE)] * 5 + [with_palette(ids(0, 1), GREY, RED, WHITE)] * 5)
    assert read_draft(root).shares == {0: 0.5, 1: 0.5}


def test_palettes_beside_colours(folder):
    root = folder([with_palette(ids(0, 1), RED, BLACK)] * 5 + [painted(ids(0, 1))] * 5)
    draft = read_draft(root)
    assert draft.shares == {BLACK: 0.5, RED: 0.5}
    np.testing.assert_array_equal(as_drawn(draft, root, "0.png"), ids(1, 0))
    np.testing.assert_array_equal(as_drawn(draft, root, "9.png"), ids(0, 1))


def test_black_and_white_of_one_bit_beside_255(folder):
    one_bit = Image.fromarray(ids(0, 1).astype(bool))
    with pytest.raises(UserError, match=r"0\.png: 1-bit.* 1 .*255.*labels/5\.png"):
        read_draft(folder([one_bit] * 5 + [ids(0, 255)] * 5))


def test_a_black_and_white_palette_beside_255(folder):
    palette = with_palette(ids(0, 1), BLACK, WHITE)
    with pytest.raises(UserError, match=r"0\.png: .*palette.* 1 .*255.*labels/5\.png"):
        read_draft(folder([palette] * 5 + [ids(0, 255)] * 5))


@pytest.mark.parametrize("other", [ids(0, 1), ids(0, 0)])
def test_depths_that_differ_where_it_does_not_matter(folder, other):
    one_bit = Image.fromarray(ids(0, 1).astype(bool))
    root = folder([one_bit] * 5 + [other] * 5)
    draft = read_draft(root)
    assert draft.shares.keys() == {0, 1}
    np.testing.assert_array_equal(reader(draft, root)("0.png"), ids(0, 1))


def test_foreground_masks_of_0_and_255(folder):
    root = folder([ids(0, 255)] * 10)
    draft = read_draft(root)
    assert [row["id"] for row in draft.classes] == [0, 255]
    assert draft.ignore == []
    np.testing.assert_array_equal(reader(draft, root)("0.png"), ids(0, 1))


def disc(size=96, radius=30.3):
    """Which share of each pixel a disc covers, from 16 x 16 points of each."""
    points = (np.arange(16 * size) + 0.5) / 16 - size / 2
    inside = points[:, None] ** 2 + points[None] ** 2 < radius**2
    return inside.reshape(size, 16, size, 16).mean((1, 3))


def blended(cover, below, above):
    return np.round(cover[..., None] * np.array(above) + (1 - cover[..., None]) * np.array(below)).astype(np.uint8)


def test_one_smoothed_mask_of_thirty(folder):
    cover = disc()
    smooth = blended(cover, BLACK, RED)
    thin = np.zeros((96, 96), int)
    thin[5], thin[:, 50] = 1, 2  # classes that are one pixel wide here
    masks = [painted(thin)] * 29
    masks[17] = smooth
    root = folder(masks)
    draft = read_draft(root)
    num_edge = int(((cover > 0) & (cover < 1)).sum())
    assert set(draft.shares) == {BLACK, RED, BLUE}
    assert draft.snapped == {"labels/17.png": num_edge / 96**2}
    assert draft.remarks[0].startswith("smoothed edges, and no classes: colour ")
    assert sum(draft.edges.values()) == pytest.approx(num_edge / 96**2 / 29)
    assert "1 of 29" in draft.remarks[1]
    assert f"labels/17.png: {100 * num_edge / 96**2:.2g} % of its pixels" in draft.remarks[2]
    is_half = cover == 0.5
    np.testing.assert_array_equal(as_drawn(draft, root, "17.png")[~is_half], (cover > 0.5)[~is_half])
    np.testing.assert_array_equal(as_drawn(draft, root, "0.png"), thin)
    red = sum((cover * 255 > 127.5).ravel()) + 28 * 95  # the blue column crosses the red row
    assert draft.shares[RED] * 29 * 96**2 == pytest.approx(red)


def test_all_masks_smoothed(folder):
    cover = disc()
    root = folder([np.round(255 * np.roll(cover, 3 * k, axis=1)).astype(np.uint8) for k in range(10)])
    draft = read_draft(root)
    assert set(draft.shares) == {0, 255}
    assert len(draft.snapped) == 10
    np.testing.assert_array_equal(reader(draft, root)("0.png"), np.round(255 * cover) > 127.5)


def test_a_thin_class_of_a_smoothed_mask_is_kept(folder):
    mask = blended(disc(), BLACK, WHITE)
    mask[10] = RED
    draft = read_draft(folder([mask] * 10))
    assert set(draft.shares) == {BLACK, WHITE, RED}
    assert re.match(r"masks look smoothed.*: colour 255, 0, 0 \(1 %\), ", draft.remarks[0])


def test_a_mask_that_is_no_blend_of_classes_is_named_and_left_out(folder):
    smooth = blended(disc(), BLACK, RED)
    wide = blended(np.tile(np.linspace(0, 1, 96), (96, 1)), BLACK, RED)  # a ramp over the whole mask
    draft = read_draft(folder([smooth] * 9 + [wide]))
    assert set(draft.shares) == {BLACK, RED}
    assert len(draft.problems) == 1
    assert re.match(r"not read.*: .*labels/9\.png: .*photograph", draft.remarks[-1])


def test_one_damaged_mask_and_one_photograph_are_named_and_left_out(folder):
    root = folder([painted(ids(0, 1))] * 28 + [NOISE, painted(ids(2, 2))])
    path = root / "labels/29.png"
    path.write_bytes(path.read_bytes()[:60])
    draft = read_draft(root)
    assert draft.shares == {BLACK: 0.5, RED: 0.5}
    assert (draft.num_masks, draft.num_labels) == (28, 30)
    assert re.search(r"labels/28\.png: .*photograph.*mask", "\n".join(draft.remarks))
    assert re.search(r"labels/29\.png: .*label.*replace it", "\n".join(draft.remarks))
    for k in range(20):
        Image.fromarray(NOISE).save(root / f"labels/{k}.png")
    with pytest.raises(UserError, match=r"labels/0\.png: .*photograph.*mask"):
        read_draft(root)


def test_a_grey_photograph(folder):
    with pytest.raises(UserError, match=r"labels/0\.png: .*photograph.*mask"):
        read_draft(folder([NOISE[..., 0]] * 10))


@pytest.mark.parametrize(("rare", "size"), [(5, 3), (5, 1), (255, 1)])
def test_an_id_in_one_mask_of_many(folder, rare, size):
    mask = ids(0, 1)
    mask[:size, :size] = rare
    root = folder([ids(0, 1)] * 250)
    Image.fromarray(mask).save(root / "labels/101.png")
    draft = read_draft(root)
    assert (draft.num_masks, draft.num_labels) == (250, 250)
    assert draft.shares[rare] == pytest.approx(size**2 / 250 / 2400)
    assert draft.shares[1] == 0.5


def test_of_many_masks_of_colours_some_are_read(folder):
    draft = read_draft(folder([painted(ids(0, 1))] * 250))
    assert (draft.num_masks, draft.num_labels) == (125, 250)


@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_masks_have_the_classes_that_were_drawn(folder, quality):
    indices = np.zeros((64, 96), int)
    indices[8:40, 16:60], indices[45:, 50:] = 1, 2
    root = folder([painted(indices)] * 10, ".png")
    for path in sorted((root / "labels").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=quality, subsampling=0)
        path.unlink()
    draft = read_draft(root)
    assert len(draft.classes) == 3
    assert len(draft.snapped) == 10
    # JPEG moves pure colours by a level or two: the class' colour is what most pixels have.
    nearest = [min(range(4), key=lambda k: np.abs(np.array(row["color"]) - CLASSES[k]).max()) for row in draft.classes]
    np.testing.assert_array_equal(np.array(nearest)[reader(draft, root)("0.jpg")], indices)


def test_transparent_pixels_are_a_value_of_their_own(folder):
    pixels = np.dstack([painted(ids(0, 1, 1, 2)), np.full(SIZE, 255)]).astype(np.uint8)
    pixels[:5, :, 3] = 0
    pixels[:5, :30, :3] = 77  # what is hidden does not matter
    root = folder([pixels] * 10)
    draft = read_draft(root)
    assert draft.shares == {RED: 0.5, BLUE: 0.25, BLACK: 0.125, "transparent": 0.125}
    names = [row["name"] for row in draft.classes]
    assert names.count("transparent") == 1
    labels = reader(draft, root)("0.png")
    assert (labels[:5] == names.index("transparent")).all()
    assert (labels[10:30] == draft.classes.index({"name": "class 0", "color": list(RED)})).all()
    assert '"transparent"' in draft.remarks[0]


def test_four_bits_are_ids_as_stored(folder):
    root = folder([ids(0, 0)] * 10)
    for path in (root / "labels").iterdir():
        path.write_bytes(png(ids(0, 3, 9, 15), 4))
    draft = read_draft(root)
    assert draft.shares == dict.fromkeys((0, 3, 9, 15), 0.25)
    np.testing.assert_array_equal(reader(draft, root)("0.png"), ids(0, 1, 2, 3))


def test_values_are_the_same_as_counted_one_by_one(folder):
    indices = np.random.default_rng(1).integers(0, 4, (20, 30))
    draft = read_draft(folder([painted(indices)] * 10))
    counted = Counter(CLASSES[k] for k in indices.ravel())
    assert draft.shares == {color: n / 600 for color, n in counted.items()}


def test_a_few_values_between_others_are_asked_about(folder):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:50] = 200
    mask[9, 10:50] = 90  # the smoothed edge of one side
    root = folder([mask] * 10)
    draft = read_draft(root)
    assert set(draft.shares) == {0, 90, 200}
    assert len(draft.remarks) == 1
    assert re.fullmatch(r'masks look smoothed.*: id 90 \(1\.7 %\), .* id 0, id 200 .*"snap": true', draft.remarks[0])
    write_draft(draft, root)
    content = json.loads((root / "dataset.json").read_text())
    content["classes"] = [row for row in content["classes"] if row["id"] != 90]
    (root / "dataset.json").write_text(json.dumps({**content, "snap": True}))
    info = own_description(root / "dataset.json", "cracks")
    np.testing.assert_array_equal(LabelDecoder(info, 255).read(root / "labels/0.png"), mask == 200)


def test_grey_jpeg_masks_of_black_and_white(folder):
    is_disc = disc() > 0.5
    root = folder([is_disc.astype(np.uint8) * 255] * 10)
    for path in sorted((root / "labels").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    draft = read_draft(root)
    assert len(draft.classes) == 2
    assert re.match("10 of 10 masks .*JPEG", draft.remarks[0])
    np.testing.assert_array_equal(reader(draft, root)("3.jpg"), is_disc)


def test_transparent_entries_of_palettes_that_differ(folder):
    root = folder([ids(0, 1)] * 10)
    for k, path in enumerate(sorted((root / "labels").iterdir())):
        colors = (RED, BLUE, BLACK) if k % 2 else (BLUE, RED, BLACK)  # black is transparent
        chunks = [(b"PLTE", bytes(c for color in colors for c in color)), (b"tRNS", bytes((255, 255, 0)))]
        path.write_bytes(png(ids(0, 1, 2, 2), 8, color_type=3, chunks=chunks))
    draft = read_draft(root)
    assert draft.shares == {"transparent": 0.5, RED: 0.25, BLUE: 0.25}
    classes = [row["name"] for row in draft.classes]
    labels = reader(draft, root)("0.png")
    assert (labels[20:] == classes.index("transparent")).all()
    np.testing.assert_array_equal(as_drawn(draft, root, "0.png")[:20], ids(2, 1, 1, 1)[:20])  # blue, red
    np.testing.assert_array_equal(as_drawn(draft, root, "1.png")[:20], ids(1, 2, 2, 2)[:20])


@pytest.mark.parametrize(("steps", "colors"), [(17, None), (16, None), (5, (BLACK, RED)), (4, (BLACK, RED))])
def test_how_many_values_where_classes_meet_are_edges(folder, steps, colors):
    cover = np.zeros((40, 60))
    cover[10:30, 10:50] = 1
    cover[9, 10:50] = np.arange(1, steps + 1).repeat(40)[::steps] / (steps + 1)
    mask = blended(cover, *colors) if colors else np.round(200 * cover).astype(np.uint8)
    root = folder([mask] * 10)
    draft = read_draft(root)
    are_edges = steps in (17, 5)
    assert set(draft.shares).issuperset({BLACK, RED} if colors else {0, 200})
    assert len(draft.shares) == (2 if are_edges else 2 + steps)
    assert len(draft.edges) == (steps if are_edges else 0)
    assert draft.snapped == (dict.fromkeys((f"labels/{k}.png" for k in range(10)), 40 / 2400) if are_edges else {})
    assert draft.remarks[0].startswith("smoothed edges, and no" if are_edges else "masks look smoothed, or have thin")
    if are_edges:
        labels = reader(draft, root)("0.png")
        foreground = np.array([row["id"] if "id" in row else row["color"] == list(RED) for row in draft.classes]) > 0
        np.testing.assert_array_equal(foreground[labels][cover != 0.5], (cover > 0.5)[cover != 0.5])


def test_values_that_could_not_be_snapped_are_no_edges(folder):
    stripes = np.array([(0, 0, 0, k, 50 + k, 100 + k, 200, 200, 200) for k in range(1, 10)], np.uint8).ravel()
    draft = read_draft(folder([np.tile(stripes, (40, 1))] * 10))  # a third of the pixels, 27 ids
    thin = [first + k for first in (0, 50, 100) for k in range(1, 10)]
    assert draft.shares == {0: 1 / 3, 200: 1 / 3} | dict.fromkeys(thin, 1 / 81)
    assert (draft.snapped, draft.problems) == ({}, ())


def test_thin_classes_with_ids_between_others_are_kept(folder):
    lanes = np.zeros((40, 60), np.uint8)
    for lane in range(1, 6):
        lanes[:30, 10 * lane] = lane  # one pixel wide, and between 0 and 255 by their ids
    lanes[35:] = 255
    draft = read_draft(folder([lanes] * 10))
    assert {row["id"] for row in draft.classes} == {0, 1, 2, 3, 4, 5}
    assert draft.ignore == [255]
    assert draft.snapped == {}
    assert draft.remarks == []


def test_an_outline_that_is_a_class_is_kept(folder):
    trimap = np.where(disc() > 0.5, 255, 0).astype(np.uint8)
    inner = np.roll(trimap, 1, 0) & np.roll(trimap, -1, 0) & np.roll(trimap, 1, 1) & np.roll(trimap, -1, 1)
    trimap[(trimap > 0) & (inner == 0)] = 128
    draft = read_draft(folder([trimap] * 10))
    assert set(draft.shares) == {0, 128, 255}
    assert draft.snapped == {}
