"""The worked examples of docs/models.md and docs/extending.md run, are short, and keep what parts promise."""

import re
from pathlib import Path

import pytest
import torch

import ovenet
from ovenet.config import default_config, load_config
from ovenet.config.loading import find_experiment
from ovenet.losses import LOSSES, build_losses
from ovenet.losses.functional import mean
from ovenet.losses.targets import Targets
from ovenet.models.registry import BACKBONES, HEADS, SEEDS
from ovenet.sweep.definition import read_sweep
from ovenet.sweep.results import result_path
from tests.models.conformance import BackboneConformance, HeadConformance
from tests.shipped import EXPERIMENTS, experiment_name, shipped

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "models.md").read_text(encoding="utf-8")
EXAMPLES = (DOCS / "extending.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT + EXAMPLES, flags=re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _examples():
    """Registers the parts of the page, and takes them back."""
    for code in CODE[1:]:
        exec(code, {"__name__": "example"})
    yield
    for registry, name in ((BACKBONES, "my_net"), (HEADS, "my_head"), (SEEDS, "my_refiner"), (LOSSES, "my_brier")):
        del registry._builders[name]


def test_there_are_four_of_under_30_lines():
    assert len(CODE[1:]) == 4
    assert all(code.count("\n") < 30 for code in CODE[1:])


class TestMyNet(BackboneConformance):
    name, args = "my_net", {"width": 4}


class TestMyHead(HeadConformance):
    name, args = "my_head", {"channels": 6}


def test_the_first_lines_run(capsys):
    exec(CODE[0], {})
    assert re.search(r"mid_channels: \w+", capsys.readouterr().out)


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_the_refiner_starts_at_the_baseline_and_learns(head):
    model = ovenet.create_model("my_net", num_classes=4, head=head, seed="my_refiner", backbone_args={"width": 4})
    model.freeze(["backbone", "neck", "head"])
    output = model.train()(torch.randn(2, 3, 48, 63))
    assert output.fused[-1].shape == output.initial[-1].shape == (2, 4, 24, 32)
    assert torch.equal(output.fused[-1], output.initial[-1] + model.seed.layer.bias.view(1, -1, 1, 1))
    output.fused[-1].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "seed.layer.weight", "seed.layer.bias",
    ]  # fmt: skip


def test_the_loss_equals_the_formula():
    scores, labels = torch.randn(2, 4, 5, 6).double(), torch.randint(0, 4, (2, 5, 6))
    labels[0, 0] = 255
    (term,) = build_losses([{"NAME": "my_brier"}])
    targets = Targets.from_labels(labels, ignore_label=255, dtype=torch.float64)
    losses = []
    for b, y, x in (labels != 255).nonzero().tolist():
        p = scores[b, :, y, x].softmax(0)
        losses.append(sum((p[k] - float(k == labels[b, y, x])) ** 2 for k in range(4)))
    torch.testing.assert_close(mean(*term.loss(scores, targets, "logits", is_final=True)), torch.stack(losses).mean())


@pytest.mark.parametrize("text", YAML)
def test_the_settings_load(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml") != default_config()


def test_every_part_is_on_the_page():
    for name in (*ovenet.list_heads(), *ovenet.list_necks(), *ovenet.list_seeds(), *ovenet.list_losses()):
        assert f"`{name}`" in TEXT or name.startswith("my_"), name
    own = [name for name in ovenet.list_backbones(timm=False) if name != "my_net"]
    families = {
        re.sub(r"(?<=[a-z]_[bw])\d+.*|\d+(?=_v1c)|(?<=mscan_).*|(?<=swin_).*|(?<=efficientformerv2_).*", "*", name)
        for name in own
    }
    assert all(f"`{family}`" in TEXT for family in families), families


def test_experiments_that_the_docs_name_exist():
    """Every ``--cfg`` of a command, in the README too, and every file below experiments/."""
    named = 0
    for path in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"--cfg (?:experiments/)?(\w[\w.-]*/\w[\w.-]*)|experiments/([\w./-]+)\.yaml", text):
            name = (name[0] or name[1]).removesuffix(".yaml")
            if name in ("data/cracks", "camvid/FILE"):  # which the reader writes, or chooses
                continue
            named += 1
            assert find_experiment(EXPERIMENTS / f"{name}.yaml").is_file(), f"{path.name}: {name}"
    assert named > 40


@pytest.mark.parametrize("folder", sorted((DOCS / "sweeps").iterdir()), ids=lambda folder: folder.name)
def test_every_result_is_a_run_of_its_sweep_file(folder):
    """A file that the settings of no run lead to is in no table, and ``tools/sweep.py`` would train its run again."""
    sweep = read_sweep(EXPERIMENTS / f"camvid/sweeps/{folder.name.removeprefix('camvid_')}.yaml")
    found = {result_path(folder, run) for run in sweep.runs}
    assert sorted(folder.iterdir()) == sorted(path for path in found if path.is_file())


LONG_NAMES = [path for path in shipped("**/*.yaml") if "# The long name of" in path.read_text()]


@pytest.mark.parametrize("path", LONG_NAMES, ids=experiment_name)
def test_long_names_are_the_short_one_with_the_published_test(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 3
    short = path.parent / lines[1].removeprefix("_BASE_: ")
    published = load_config(path).TEST
    assert load_config(path) == load_config(short, ["TEST.PROTOCOL", published.PROTOCOL, "TEST.SCORE", published.SCORE])
    assert len(short.stem) < 25


def test_published_long_names_stay():
    names = {path.stem for path in shipped("cityscapes/published/*.yaml")}
    assert {
        "seg_hrnet_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
        "seg_hrnet_w48_train_ohem_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484_cityscapes_pretrained",
        "seg_hrnet_ocr_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
    } <= names
