"""The worked examples of docs/models.md run, are short, and keep what parts promise."""

import re
from pathlib import Path

import pytest
import torch

import ovenet
from ovenet.config import default_config, load_config
from ovenet.losses import LOSSES, build_losses
from ovenet.losses.functional import mean
from ovenet.losses.targets import Targets
from ovenet.models.registry import BACKBONES, HEADS
from tests.models.conformance import BackboneConformance, HeadConformance

TEXT = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _examples():
    """Registers the parts of the page, and takes them back."""
    for code in CODE[1:]:
        exec(code, {"__name__": "example"})
    yield
    for registry, name in ((BACKBONES, "my_net"), (HEADS, "my_head"), (LOSSES, "my_brier")):
        del registry._builders[name]


def test_there_are_three_of_under_30_lines():
    assert len(CODE[1:]) == 3
    assert all(code.count("\n") < 30 for code in CODE[1:])


class TestMyNet(BackboneConformance):
    name, args = "my_net", {"width": 4}


class TestMyHead(HeadConformance):
    name, args = "my_head", {"channels": 6}


def test_the_first_lines_run(capsys):
    exec(CODE[0], {})
    assert "mid_channels: width of pixel and region features" in capsys.readouterr().out


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
