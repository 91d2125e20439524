"""tools/audit_data.py, tools/browse_data.py, and what training does with data before its first step."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import forking
from tests.annotation_files import annotation, coco

from ovenet import builders
from ovenet.config import load_config


@pytest.fixture
def experiment(small, tiny_data, tmp_path, write_config):
    small["DATASET"]["ROOT"] = str(tiny_data)
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    return ("--cfg", write_config(small, "tiny.yaml")), tmp_path / "output/camvid"


def test_an_audit_of_sound_data(run_tool, experiment):
    arguments, folder = experiment
    result = run_tool("audit_data", *arguments, "--decode-images")
    assert result.code == 0, result.err
    assert "train: 6 pairs (6 of 64x48)" in result.out
    content = json.loads((folder / "audit/audit.json").read_text())
    assert sum(content["lists"]["train"]["class_pixels"]) <= 6 * 48 * 64
    for name in ("train", "val"):
        assert np.asarray(Image.open(folder / f"audit/{name}.png")).std() > 10
    weights = run_tool("train", *arguments, "LOSS.CLASS_WEIGHTS", folder / "audit/audit.json", "TRAIN.END_EPOCH", 1)
    assert weights.code == 0, weights.err


def test_an_audit_that_finds_errors_ends_with_2(run_tool, experiment, tiny_data):
    arguments, folder = experiment
    Image.fromarray(np.full((48, 64), 12, np.uint8)).save(tiny_data / "camvid/trainannot/2.png")
    (tiny_data / "camvid/valannot/1.png").unlink()
    result = run_tool("audit_data", *arguments)
    assert result.code == 2
    assert "error: train: wrong class count: " in result.out
    assert "[trainannot/2.png]" in result.out
    assert f"; run `ovenet prepare camvid --root {tiny_data}`" in result.out
    assert result.err.splitlines()[-1].startswith("error: training would be wrong: 2 kind(s) of error")
    assert (folder / "audit/audit.json").exists()  # the report is there all the same
    assert len(json.loads((folder / "audit/audit.json").read_text())["lists"]["train"]["findings"]) == 1


def test_palettes_that_differ_are_found_before_training_too(run_tool, experiment, tiny_data):
    """In the training list, in the validation list, or between the two."""
    arguments, folder = experiment

    def paint(pattern, palette):
        for path in (tiny_data / "camvid").glob(pattern):
            label = Image.open(path).convert("L").point(lambda value: value % 2)
            label = Image.fromarray(np.asarray(label), "P")
            label.putpalette(palette)
            label.save(path)

    paint("trainannot/*.png", [9, 9, 9, 200, 0, 0])
    paint("valannot/*.png", [9, 9, 9, 0, 200, 0])
    for result in (run_tool("audit_data", *arguments), run_tool("train", *arguments, "TRAIN.END_EPOCH", 1)):
        assert result.code == 2
        assert "palettes differ: index 1 is the colour [200, 0, 0] in most files and [0, 200, 0] in others" in (
            result.out + result.err
        )
    content = json.loads((folder / "audit/audit.json").read_text())
    assert [(row["kind"], row["error"]) for row in content["findings"]] == [("palettes differ", True)]
    assert content["findings"][0]["paths"][0].startswith("valannot/")
    paint("trainannot/0.png", [9, 9, 9, 0, 0, 200])
    result = run_tool("train", *arguments, "TRAIN.END_EPOCH", 1)
    assert result.code == 2
    assert "trainannot/0.png: palettes differ: " in result.err.splitlines()[-1]


def test_shared_images_are_remarked(run_tool, experiment, tiny_data):
    arguments, _ = experiment
    (tiny_data / "list/camvid/mixed.lst").write_text("val/0.png valannot/0.png\ntrain/1.png trainannot/1.png\n")
    result = run_tool("audit_data", *arguments, "DATASET.TEST_SET", "list/camvid/mixed.lst")
    assert re.search(r"shared image: 1 .*\[train/1\.png\]", result.out)


def test_browsing_shows_the_crops_of_training(run_tool, experiment):
    arguments, folder = experiment
    result = run_tool("browse_data", *arguments, "--samples", 3, "--variants", 2)
    assert result.code == 0, result.err
    assert "6 crops of 48x32 pixels" in result.out
    sheet = np.asarray(Image.open(folder / "browse/tiny.png"))
    assert sheet.shape[1] == 4 * 406 + 6
    assert sheet[10:120, 10:190].std() > 10


@pytest.mark.parametrize(
    ("tool", "option"),
    [
        ("audit_data", ("--pairs", -1)),
        ("browse_data", ("--samples", 0)),
        ("browse_data", ("--variants", 0)),
        ("browse_data", ("--variants", 10**6)),
    ],
)
def test_options_out_of_range(run_tool, experiment, tool, option):
    result = run_tool(tool, *experiment[0], *option)
    assert result.code == 2
    assert f"{option[0]} is {option[1]}; expected " in result.err


def test_pictures_replace_nothing_unasked(run_tool, experiment, tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    for tool in ("browse_data", "compare"):
        arguments = experiment[0] if tool == "browse_data" else (tmp_path,)
        result = run_tool(tool, *arguments, "--output", mine)
        assert (result.code, mine.read_bytes()) == (2, b"mine")
        assert re.search(r"mine\.png exists.*--output.*--overwrite", result.err)
    assert run_tool("browse_data", *experiment[0], "--output", mine, "--overwrite").code == 0
    assert mine.read_bytes() != b"mine"


def test_a_missing_list_is_written_on_first_use(run_tool, experiment, tiny_data):
    arguments, _ = experiment
    (tiny_data / "list/camvid/train.lst").unlink()
    kept = (tiny_data / "list/camvid/val.lst").read_text()
    result = run_tool("train", *arguments, "TRAIN.END_EPOCH", 1)
    assert result.code == 0, result.err
    assert "train.lst: 6 lines" in result.err
    assert "6 of the 367 published images" in result.err
    assert (tiny_data / "list/camvid/val.lst").read_text() == kept
    named_by_split = run_tool("train", *arguments, "DATASET.TRAIN_SET", "train", "TRAIN.RESUME", "True")
    assert named_by_split.code == 0, named_by_split.err


def test_training_looks_at_its_data_first(run_tool, experiment, tiny_data):
    arguments, _ = experiment
    result = run_tool("train", *arguments, "TRAIN.END_EPOCH", 1)
    assert "train.lst: 6 of 6 pairs" in result.err
    (tiny_data / "camvid/train/5.png").unlink()
    result = run_tool("train", *arguments, "TRAIN.RESUME", "True", "DATASET.AUDIT", 2)
    assert result.code == 2
    assert re.search(r"train/5\.png: .*does not exist", result.err)
    result = run_tool("train", *arguments, "TRAIN.RESUME", "True", "DATASET.AUDIT", -1)
    assert re.search(r"DATASET\.AUDIT is -1.*at least 0", result.err)


def test_annotations_become_a_dataset(run_tool, tmp_path):
    """From labelme's files to list files, in one command."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(5):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(source / f"{number}.png")
        shape = {"label": "road", "points": [[0, 10], [29, 10], [29, 19], [0, 19]], "shape_type": "polygon"}
        content = {"imagePath": f"{number}.png", "shapes": [shape]}
        (source / f"{number}.json").write_text(json.dumps(content))
    command = ("prepare_data", "mine", "--root", tmp_path / "data", "--from", "labelme")
    done = run_tool(*command, "--source", source, "--background", "other")
    assert done.code == 0, done.err
    assert "masks of 5 images" in done.out
    lines = (tmp_path / "data/list/mine/trainval.lst").read_text().splitlines()
    assert len(lines) == 5
    experiment = tmp_path / "data/mine/experiment.yaml"
    assert done.out.endswith(f"\nnow look: ovenet audit --cfg {experiment}\n")
    cfg = load_config(experiment)
    assert (cfg.DATASET.NUM_CLASSES, cfg.TEST.BASE_SIZE) == (2, 30)
    lists = [builders.list_dataset(cfg, name) for name in (cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET)]
    assert sum(map(len, lists)) == 5
    again = run_tool(*command, "--source", source)
    assert again.code == 2
    assert re.search(r"data/mine: .*no split \(labels/", again.err)
    assert "name the annotations" in run_tool(*command).err
    known = run_tool("prepare_data", "cityscapes", "--root", tmp_path, "--from", "coco", "--source", source)
    assert "a known dataset" in known.err
    assert "--background goes with --from" in run_tool("prepare_data", "mine", "--background", "x").err
    assert "--split goes with --from" in run_tool("prepare_data", "mine", "--split", "val").err


def test_splits_are_imported_one_after_the_other(run_tool, tmp_path):
    """The lists wait for the second where one image cannot be divided; what is noticed stands on lines of its own."""
    command = ("prepare_data", "mine", "--root", tmp_path / "data", "--from", "coco", "--source")
    outline = [[2, 3, 12, 3, 12, 15, 2, 15]]
    rows = [annotation(3, outline), annotation(3, []), annotation(5, [[20, 2, 40, 2, 40, 6, 20, 6]])]
    train = coco(tmp_path, rows, name="instances_train.json")
    done = run_tool(*command, train)
    assert done.code == 0, done.err
    folder = tmp_path / "data/mine"
    first, second = done.out.splitlines()  # what to do next waits for the lists
    assert first == f"{folder}: masks of 1 images in the split train, and dataset.json"
    assert second.startswith(f"{folder}/experiment.yaml: crops and sizes chosen for 30x20 pixels; ")
    notes = done.err.splitlines()
    assert notes[:3] == [
        "note: annotations without an outline, left out: 1 (annotation 101 ('tree'))",
        "note: shapes that reach out of their image, cut off there: 1 (annotation 102 ('bird'))",
        "note: there is no split val yet; until it is imported, lists divide the existing images",
    ]
    assert notes[3].startswith("note: no list files before that: ")
    assert len(notes) == 4
    names = [{"id": 3, "name": "tree"}, {"id": 4, "name": "ant"}]
    val = coco(tmp_path, [annotation(3, outline), annotation(4, outline)], name="instances_val.json", categories=names)
    done = run_tool(*command, val)
    assert done.code == 0, done.err
    assert re.search(r"data/mine: masks .*\b1 .* val\n", done.out)
    assert re.search(r"dataset\.json: 1 .*: ant\n", done.out)
    assert re.search(r"experiment\.yaml: .*DATASET\.NUM_CLASSES.*\b3\n", done.out)
    assert done.out.endswith(f"\nnow look: ovenet audit --cfg {folder}/experiment.yaml\n")
    for split in ("train", "val"):
        lines = (tmp_path / f"data/list/mine/{split}.lst").read_text()
        assert lines == f"images/{split}/a.png\tlabels/{split}/a.png\n"
    again = run_tool(*command, val)
    assert again.code == 2
    assert again.out == ""
    assert "has a split val already" in again.err


@pytest.fixture
def prepare(tmp_path):
    """Runs ``prepare_data.py`` as a process in a folder of its own."""

    def run(*arguments, code=0):
        done = forking.run([Path("tools/prepare_data.py").resolve(), *arguments], cwd=tmp_path)
        assert done.returncode == code, done.stderr
        if code:
            assert len(done.stderr.splitlines()) == 1
            assert done.stderr.startswith("error: ")
        return done

    return run


def plant(folder, image="images/#.png", label="labels/#.png", names=range(10)):
    """Images and masks of two classes, ``#`` standing for each of the names."""
    for pattern, mode, colors in ((image, "RGB", [(9, 9, 9)]), (label, "L", [0, 1])):
        for index, name in enumerate(names):
            path = folder / pattern.replace("#", str(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (64, 48), colors[index % len(colors)]).save(path)


def test_a_folder_becomes_an_experiment_in_one_step(prepare, tmp_path):
    plant(tmp_path / "data/leaves")
    first = prepare("leaves")
    assert re.search(r"id 0: 50\.00 % .*, a class", first.stdout)
    assert first.stdout.splitlines()[-1].endswith("ovenet audit --cfg data/leaves/experiment.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # all lies beside the data
    described = (tmp_path / "data/leaves/dataset.json").read_text()
    assert json.loads(described)["layouts"] == {"images": "images/**", "labels": "labels/**"}
    (tmp_path / "data/leaves/dataset.json").write_text(described.replace("class 1", "blight"))
    prepare("leaves")
    assert "blight" in (tmp_path / "data/leaves/dataset.json").read_text()  # what was edited stays
    cfg = load_config(tmp_path / "data/leaves/experiment.yaml")
    assert cfg.DATASET.NUM_CLASSES == 2
    earlier = tmp_path / "experiments/folder/leaves.yaml"  # where earlier versions put it
    earlier.parent.mkdir(parents=True)
    earlier.write_text((tmp_path / "data/leaves/experiment.yaml").read_text())
    assert load_config(earlier) == cfg


def test_a_drafted_dataset_takes_an_import(prepare, tmp_path):
    """Its layouts name the splits that were there when it was drafted."""
    for split, names in (("train", range(4)), ("val", range(4, 6))):
        plant(tmp_path / "data/leaves", f"images/{split}/#.png", f"labels/{split}/#.png", names)
    prepare("leaves")
    description = tmp_path / "data/leaves/dataset.json"
    assert "test" not in json.loads(description.read_text())["layouts"]["split_names"]
    test = coco(tmp_path, [annotation(3, [[2, 3, 12, 3, 12, 15, 2, 15]])], name="test.json")
    done = prepare("leaves", "--from", "coco", "--source", test, "--background", "class 0")
    assert re.search(r"data/leaves: masks .*\b1 .* test\n", done.stdout)
    assert "list/leaves/test.lst: 1 lines" in done.stdout
    assert (tmp_path / "data/list/leaves/test.lst").read_text() == "images/test/a.png\tlabels/test/a.png\n"
    content = json.loads(description.read_text())
    assert content["layouts"]["split_names"] == {"train": "train", "val": "val", "test": "test"}


def test_one_image_is_refused_before_anything_is_written(prepare, tmp_path):
    plant(tmp_path / "data/leaves", names=["a"])
    mask = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) // 128  # two values
    Image.fromarray(mask).save(tmp_path / "data/leaves/labels/a.png")
    refused = prepare("leaves", code=2)
    assert re.search(r"one image.*validation", refused.stderr)
    assert {path.name for path in (tmp_path / "data/leaves").iterdir()} == {"images", "labels"}


def test_photos_and_masks_are_recognized_and_what_is_alone_is_named(prepare, tmp_path):
    """Names that a list cannot hold among them; what is done is said in that order."""
    folder = tmp_path / "data/my # cracks 🍂"
    plant(folder, "photos/#.JPG", "masks/#_mask.png", ["é 1", "#2", "x" * 200, *range(4, 10)])
    for name in (b"caf\xe9.jpg", b"a\tb.jpg", b"5.png", b"Z.jpg", b"empty.jpg"):
        (folder / "photos" / os.fsdecode(name)).write_bytes((folder / "photos/4.JPG").read_bytes())
    (folder / "photos/empty.jpg").write_bytes(b"")
    (folder / "photos/gone.jpg").symlink_to("nowhere.jpg")
    for name in ("empty", "gone"):
        (folder / f"masks/{name}_mask.png").write_bytes((folder / "masks/4_mask.png").read_bytes())
    (folder / "masks/Z_mask.xcf").write_bytes(b"gimp")
    (folder / "masks/6_mask.png").rename(folder / "masks/6b_mask.png")
    done = prepare(folder.name)
    lines = done.stdout.splitlines()
    assert lines[0] == f"data/{folder.name}: images are photos/**, masks are masks/**_mask"
    assert [line.split(":")[0].rpartition("/")[2] for line in lines if line[0] != " "][1:-1] == [
        "experiment.yaml", "dataset.json", "train.lst", "val.lst", "trainval.lst",
    ]  # fmt: skip
    listed = (tmp_path / f"data/list/{folder.name}/trainval.lst").read_text()
    expected = ["é 1", "#2", "x" * 200, 4, 7, 8, 9]
    assert sorted(listed.splitlines()) == sorted(f"photos/{n}.JPG\tmasks/{n}_mask.png" for n in expected)
    assert sorted(done.stderr.splitlines()) == [
        "note: left out, empty files (1): photos/empty.jpg",
        "note: left out, file names that are not UTF-8 (1): photos/caf\\udce9.jpg",
        "note: left out, file names with tabs or line breaks (1): photos/a\tb.jpg",
        "note: left out, images without a label (2): photos/6.JPG (is masks/6b_mask.png meant?), "
        "photos/Z.jpg (masks/Z_mask.xcf is no picture that is read)",
        "note: left out, labels without an image (1): masks/6b_mask.png (is photos/6.JPG meant?)",
        "note: left out, links to what does not exist (1): photos/gone.jpg",
        "note: left out, several files for one name (1): photos/5.JPG and photos/5.png",
    ]
    cfg = load_config(folder / "experiment.yaml", ["DATASET.ROOT", str(tmp_path / "data")])
    assert len(builders.list_dataset(cfg, cfg.DATASET.TRAIN_SET)) > 0


def test_lists_follow_the_files(prepare, tmp_path):
    plant(tmp_path / "data/leaves")
    prepare("leaves")
    assert "before" not in prepare("leaves").stdout
    lists = tmp_path / "data/list/leaves"
    before = {path.name: path.read_text() for path in lists.iterdir()}
    (tmp_path / "data/leaves/labels/3.png").unlink()
    plant(tmp_path / "data/leaves", names=range(10, 12))
    said = prepare("leaves").stdout
    assert (
        f"{Path('data/list/leaves/trainval.lst')}: 11 lines (10 before: 2 added, 1 removed; kept as trainval.lst.old)"
        in said
    )
    assert (lists / "trainval.lst.old").read_text() == before["trainval.lst"]
    (lists / "train.lst").write_bytes(b"edited \xff\n")
    assert "train.lst.old" in prepare("leaves").stdout
    assert b"edited \xff\n" in {path.read_bytes() for path in lists.glob("train.lst.old*")}


def test_what_is_not_clear_can_be_said(prepare, tmp_path):
    """In a dataset.json without classes, which the draft completes; nothing is written before."""
    folder = tmp_path / "data/leaves"
    plant(folder, "photos/#.jpg", "masks/#.png")
    plant(folder, "photos/#.jpg", "old masks/labels/#.png")
    plant(folder, "photos/#.jpg", "gt/#.png")
    before = sorted(tmp_path.rglob("*"))
    refused = prepare("leaves", code=2).stderr
    assert "photos/** with gt/**, or photos/** with masks/**?" in refused
    assert "data/leaves/dataset.json" in refused
    assert sorted(tmp_path.rglob("*")) == before
    (folder / "dataset.json").write_text('{"layouts": {"images": "photos/*", "labels": "gt/*"}, "val_share": 0.5}')
    prepare("leaves")
    content = json.loads((folder / "dataset.json").read_text())
    assert (content["layouts"], content["val_share"]) == ({"images": "photos/*", "labels": "gt/*"}, 0.5)
    assert [row["id"] for row in content["classes"]] == [0, 1]


def test_a_description_by_hand_needs_no_layouts(prepare, tmp_path):
    plant(tmp_path / "data/leaves", "photos/#.jpg", "masks/#.png")
    (tmp_path / "data/leaves/dataset.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}]}')
    said = prepare("leaves").stderr
    assert 'add to data/leaves/dataset.json: "layouts": {"images": "photos/**", "labels": "masks/**"}' in said
    (tmp_path / "data/leaves/dataset.json").write_text(
        '{"classes": [{"name": "a"}, {"name": "b"}], "layouts": {"images": "pics/*", "labels": "masks/*"}}'
    )
    assert "or correct the layouts in data/leaves/dataset.json" in prepare("leaves", code=2).stderr


def test_after_a_refusal_the_next_try_goes_on(prepare, tmp_path):
    """One pair makes no training and validation; with more the lists are written, and the draft is there."""
    plant(tmp_path / "data/leaves", names=["a"])
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = 1
    Image.fromarray(mask).save(tmp_path / "data/leaves/labels/a.png")
    assert re.search(r"one image.*validation", prepare("leaves", code=2).stderr)
    plant(tmp_path / "data/leaves", names=range(3))
    prepare("leaves")
    assert (tmp_path / "data/leaves/experiment.yaml").exists()
    assert len((tmp_path / "data/list/leaves/trainval.lst").read_text().splitlines()) == 4


@pytest.mark.ci
def test_data_elsewhere(prepare, tmp_path):
    plant(tmp_path / "disk/leaves")
    prepare("leaves", "--root", tmp_path / "disk")
    assert str(tmp_path / "disk") == load_config(tmp_path / "disk/leaves/experiment.yaml").DATASET.ROOT
    for name in (tmp_path / "disk/leaves", "disk/leaves", "disk/../disk/leaves"):
        refused = prepare(name, code=2).stderr
        assert "ovenet prepare leaves --root " in refused
        assert refused.rstrip().endswith("disk")
    for name, reason in ((os.fsdecode(b"caf\xe9"), "not UTF-8"), ("a\nb", "line breaks")):
        assert reason in prepare(name, code=2).stderr
    assert "no such folder" in prepare("leaves", "--source", tmp_path / "nowhere", code=2).stderr
    assert prepare("leaves/", "--root", tmp_path / "disk").stdout.count("lines") == 3


def test_names_that_are_not_utf8_everywhere(prepare, tmp_path):
    """A folder whose files cannot be listed leaves nothing half written."""
    folder = tmp_path / "data/leaves" / os.fsdecode(b"caf\xe9")
    plant(folder)
    before = sorted(tmp_path.rglob("*"))
    assert "left out, file names that are not UTF-8" in prepare("leaves", code=2).stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_nothing_is_one_line(run_tool, tmp_path):
    done = run_tool("prepare_data", "leafs", "--root", tmp_path)
    assert done.code == 2
    assert re.search(r"error: .*leafs: no such folder; expected one of acdc", done.err)
