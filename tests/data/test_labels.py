"""What the samples of a label file mean, and which files can be read in two ways."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.data.pixel_files import png

from ovenet.data.description import own_description
from ovenet.data.labels import LabelDecoder, color_codes, colors_of_codes, count_values
from ovenet.data.masks import read_mask
from ovenet.errors import UserError

BLACK, GREY, WHITE, RED, BLUE = (0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 0, 0), (0, 0, 255)
IGNORED = 255


@pytest.fixture
def decoder(tmp_path):
    """A function that writes a dataset.json with these classes and keys, and gives its decoder."""

    def make(*classes, **keys):
        rows = [
            {"name": f"c{k}", **(one if isinstance(one, dict) else {"color": one})} for k, one in enumerate(classes)
        ]
        (tmp_path / "dataset.json").write_text(json.dumps({"classes": rows, **keys}))
        return LabelDecoder(own_description(tmp_path / "dataset.json", "mine"), IGNORED)

    return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.png"


def save_palette(path, indices, *colors):
    image = Image.fromarray(np.array(indices, np.uint8), "P")
    image.putpalette([channel for color in colors for channel in color])
    image.save(path)


def save(path, pixels, **options):
    Image.fromarray(np.array(pixels, np.uint8)).save(path, **options)


def content(decoder, path):
    return decoder.decode(read_mask(path), path)


def test_indices_and_colours_that_name_different_classes_are_refused(decoder, path):
    save_palette(path, [[0, 1, 1]], RED, BLACK)  # quantize put red first here, black in another file
    with pytest.raises(
        UserError,
        match=r"mask\.png: index 0 .*'c0'.*'c1'.*palette.*\[255, 0, 0\]; "
        r'.*dataset\.json.*"label_format": "colors".*"ids"',
    ):
        decoder(BLACK, RED).read(path)
    assert decoder(BLACK, RED, label_format="colors").read(path).tolist() == [[1, 0, 0]]
    assert decoder(BLACK, RED, label_format="ids").read(path).tolist() == [[0, 1, 1]]


DARK_GREEN = (0, 128, 0)  # what a second class gets whose colour nobody chose


def test_a_chosen_colour_that_is_a_usual_one_counts(decoder, path):
    save_palette(path, [[0, 1, 1]], DARK_GREEN, BLACK)
    with pytest.raises(UserError, match=r"index 0 .*'c0'.*'c1'.*palette"):
        decoder(BLACK, DARK_GREEN).read(path)
    assert decoder(BLACK, {"id": 1}).read(path).tolist() == [[0, 1, 1]]
    # As a draft of earlier versions wrote them for all classes alike:
    assert decoder((128, 0, 0), DARK_GREEN).read(path).tolist() == [[0, 1, 1]]


def test_one_foreign_colour_does_not_hide_two_that_contradict(decoder, path):
    save_palette(path, [[0, 1, 2]], RED, BLACK, BLUE)
    with pytest.raises(UserError, match=r"index 0 .*'c0'.*'c1'.*palette"):
        decoder(BLACK, RED, GREY).read(path)
    save_palette(path, [[0, 1, 2]], BLACK, BLUE, RED)  # one contradicts: a tool's own palette
    assert decoder(BLACK, RED, GREY).read(path).tolist() == [[0, 1, 2]]


def test_an_index_that_is_no_class_but_whose_colour_is(decoder, path):
    save_palette(path, [[0, 2]], BLACK, BLUE, RED)
    with pytest.raises(UserError, match=r"index 2 .*no class.*'c1'"):
        decoder(BLACK, RED).read(path)


@pytest.mark.parametrize(
    ("colors", "classes", "keys"),
    [
        ((BLACK, RED), (BLACK, RED), {}),  # both readings agree
        ((RED, BLUE), (BLACK, RED), {}),  # a tool's own palette: blue is no class, so colours are no reading
        ((BLACK, (128, 0, 0)), ({"id": 0}, {"id": 1}), {}),  # VOC's palette, and colours that nobody chose
        (((128, 0, 0), (0, 128, 0)), ({"id": 0}, {"id": 1}), {}),
        ((WHITE, RED), (BLACK, RED), {"ignore": [list(BLUE)]}),
    ],
)
def test_palettes_that_say_nothing_else_are_read_as_ids(decoder, path, colors, classes, keys):
    save_palette(path, [[0, 1, 1]], *colors)
    assert decoder(*classes, **keys).read(path).tolist() == [[0, 1, 1]]


def test_unused_entries_of_a_palette_do_not_matter(decoder, path):
    save_palette(path, [[0, 0]], BLACK, BLACK, RED)
    assert decoder(BLACK, RED).read(path).tolist() == [[0, 0]]


def test_an_ignored_index_may_have_any_colour(decoder, path):
    save_palette(path, [[0, 1, 2]], BLACK, RED, (224, 224, 192))
    assert decoder(BLACK, RED, ignore=[2]).read(path).tolist() == [[0, 1, IGNORED]]


@pytest.mark.parametrize(("bits", "white"), [(1, 1), (2, 3), (4, 15)])
def test_the_white_of_few_bits_is_no_255(decoder, path, bits, white):
    path.write_bytes(png(np.array([[0, white]]), bits))
    with pytest.raises(UserError, match=rf"value {white} .*mine.* {bits} bit.* 255.* 8 bits"):
        decoder({"id": 0}, {"id": 255}).read(path)
    assert decoder({"id": 0}, {"id": white}).read(path).tolist() == [[0, 1]]


def test_values_out_of_range_are_named(decoder, path):
    Image.fromarray(np.array([[0, 1, 256]], np.int32)).save(path, format="TIFF")
    with pytest.raises(UserError, match=r"value 256 .*mine"):
        decoder({"id": 0}, {"id": 1}).read(path)
    Image.fromarray(np.array([[0, 1, -1]], np.float32)).save(path, format="TIFF")
    with pytest.raises(UserError, match=r"value -1 .*mine"):
        decoder({"id": 0}, {"id": 1}, snap=True).read(path)


def test_colours_are_counted(path):
    pixels = np.random.default_rng(0).integers(0, 3, (40, 50, 3)).astype(np.uint8)
    expected = {}
    for pixel in map(tuple, pixels.reshape(-1, 3).tolist()):
        expected[pixel] = expected.get(pixel, 0) + 1
    codes, numbers = count_values(color_codes(pixels))
    assert dict(zip(colors_of_codes(codes), numbers.tolist(), strict=True)) == expected
    codes, numbers = count_values(color_codes(pixels[pixels[..., 0] > 5]))
    assert colors_of_codes(codes) == numbers.tolist() == []


def disc(size=80, radius=25.3, smooth=True):
    """A white disc on black, and how much of each pixel it covers, from 16 x 16 points of each."""
    points = (np.arange(16 * size) + 0.5) / 16 - size / 2
    inside = points[:, None] ** 2 + points[None] ** 2 < radius**2
    return inside.reshape(size, 16, size, 16).mean((1, 3))


def blend(cover, below, above):
    return np.round(cover[..., None] * np.array(above) + (1 - cover[..., None]) * np.array(below)).astype(np.uint8)


@pytest.mark.parametrize(("below", "above"), [(BLACK, WHITE), (RED, BLUE), (WHITE, RED)])
def test_smoothed_edges_go_to_the_class_that_covers_more(decoder, path, below, above):
    cover = disc()
    save(path, blend(cover, below, above))
    third = next(color for color in (GREY, BLUE, BLACK) if color not in (below, above))
    with pytest.raises(UserError, match=r'colour \[.*mine.*smooth.*"snap": true'):
        decoder(below, above, third).read(path)
    found = content(decoder(below, above, third, snap=True), path)
    is_half = cover == 0.5
    np.testing.assert_array_equal(found.train_ids[~is_half], (cover > 0.5)[~is_half])
    values = {tuple(below), tuple(above), tuple(third)}
    edge = [pixel not in values for pixel in map(tuple, blend(cover, below, above).reshape(-1, 3).tolist())]
    assert found.num_snapped == sum(edge) > 100
    assert not found.unknown.any()


def test_smoothed_grey_ids(decoder, path):
    cover = disc()
    save(path, np.round(255 * cover))
    found = content(decoder({"id": 0}, {"id": 255}, snap=True), path)
    np.testing.assert_array_equal(found.train_ids, cover * 255 > 127)
    assert found.num_snapped == ((cover > 0) & (cover < 1)).sum()


def test_a_thin_line_without_a_pixel_of_its_own_colour_stays(decoder, path):
    cover = np.zeros((40, 40))
    cover[10], cover[11] = 0.7, 0.3  # one pixel wide, between two rows
    save(path, blend(cover, BLACK, RED))
    np.testing.assert_array_equal(decoder(BLACK, RED, WHITE, snap=True).read(path), cover > 0.5)


def test_a_forgotten_class_is_no_edge(decoder, path):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[20:40, 20:40] = BLUE
    save(path, pixels)
    with pytest.raises(UserError, match=r"\[0, 0, 255\] .*mine \(400 .*blend.*dataset\.json"):
        decoder(BLACK, RED, WHITE, snap=True).read(path)


@pytest.mark.parametrize("side", [20, 3])
def test_a_forgotten_class_between_two_others_is_no_edge_where_it_is_wide(decoder, path, side):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[20 : 20 + side, 20:40] = GREY  # a blend of black and white by its colour
    pixels[50, 10:50] = GREY  # and it is a class where it is thin, too
    save(path, pixels)
    number = 20 * side + 40
    with pytest.raises(UserError, match=rf"\[128, 128, 128\] .*mine \({number} "):
        decoder(BLACK, RED, WHITE, snap=True).read(path)
    save(path, pixels[..., 0])
    with pytest.raises(UserError, match=r"value 128 .*mine"):
        decoder({"id": 0}, {"id": 255}, snap=True).read(path)


def test_a_photograph_is_not_snapped(decoder, path):
    save(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3)))
    with pytest.raises(UserError, match=r"colour \[.*mine.*blend"):
        decoder(BLACK, RED, WHITE, snap=True).read(path)


@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_masks_of_few_far_colours(decoder, tmp_path, quality):
    path = tmp_path / "mask.jpg"
    ids = np.zeros((64, 96), np.uint8)
    ids[8:40, 16:60], ids[45:, 50:] = 1, 2
    save(path, np.array([BLACK, RED, WHITE])[ids], quality=quality, subsampling=0)
    with pytest.raises(UserError, match=r'mine.*JPEG.*PNG.*"snap": true'):
        decoder(BLACK, RED, WHITE).read(path)
    np.testing.assert_array_equal(decoder(BLACK, RED, WHITE, snap=True).read(path), ids)


@pytest.mark.parametrize("classes", [({"id": 0}, {"id": 1}), ({"id": 0}, {"id": 64})])
@pytest.mark.parametrize("snap", [False, True])
def test_jpeg_mixes_up_near_ids(decoder, tmp_path, classes, snap):
    path = tmp_path / "mask.jpg"
    save(path, np.zeros((16, 16)))
    with pytest.raises(UserError, match=r"mask.*JPEG.*\b0 and"):
        decoder(*classes, snap=snap).read(path)


def rgba(*rows):
    return [[(*color, alpha) for color, alpha in row] for row in rows]


def test_a_colour_hidden_below_transparent_pixels_counts_where_it_means_one_thing(decoder, path):
    save(path, rgba([(BLACK, 0), (RED, 255), (RED, 100)]))
    found = content(decoder(BLACK, RED), path)
    assert found.train_ids.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "row",
    [
        [(BLACK, 0), (BLACK, 255), (RED, 255)],  # black is hidden and drawn
        [(BLACK, 0), (RED, 0), (RED, 255)],  # two hidden colours
        [(BLUE, 0), (BLACK, 255), (RED, 255)],  # a hidden colour that is no class
    ],
)
def test_otherwise_what_is_transparent_must_be_said(decoder, path, row):
    save(path, rgba(row))
    with pytest.raises(UserError, match=r'mask\.png: (33|67) % .*dataset\.json.*"transparent": .*"ignore"'):
        decoder(BLACK, RED).read(path)
    hidden = [alpha == 0 for _, alpha in row]
    drawn = [int(color == RED) for color, _ in row]
    for value, train_id in (("c0", 0), ("c1", 1), ("ignore", IGNORED)):
        expected = np.where(hidden, train_id, drawn)
        np.testing.assert_array_equal(decoder(BLACK, RED, transparent=value).read(path)[0], expected)


def test_what_is_hidden_takes_no_part_in_smoothed_edges(decoder, path):
    cover = disc()
    pixels = np.dstack([blend(cover, BLACK, WHITE), np.full(cover.shape, 255)])
    pixels[:40] = (*RED, 0)  # a hidden colour of a class
    save(path, pixels)
    found = decoder(BLACK, WHITE, RED, snap=True, transparent="ignore").read(path)
    np.testing.assert_array_equal(found[40:], (cover > 0.5)[40:])
    assert (found[:40] == IGNORED).all()


def test_transparent_entries_of_a_palette_are_ids_like_others(decoder, path):
    chunks = [(b"PLTE", bytes((*BLACK, *RED))), (b"tRNS", bytes((0,)))]
    path.write_bytes(png(np.array([[0, 1]]), 1, color_type=3, chunks=chunks))
    assert decoder(BLACK, RED).read(path).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"snap": 1}, "snap is 1; expected true or false"),
        ({"transparent": "c7"}, 'transparent is "c7"; expected the name'),
    ],
)
def test_keys_that_mean_nothing(decoder, keys, message):
    with pytest.raises(UserError, match=message):
        decoder(BLACK, RED, **keys)
