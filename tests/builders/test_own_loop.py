"""Loss and scores without a configuration."""

import numpy as np
import pytest
import torch
from tests.four_convolutions import registered
from torch import nn
from torch.utils.data import DataLoader

import ovenet
from ovenet import BatchEvaluator, SegmentationDataset, UserError, builders
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.models import Segmentor
from ovenet.utils.meta import meta_device

K = 3


@pytest.fixture(autouse=True)
def _backbone():
    with registered():
        torch.manual_seed(0)
        yield


def model_of(**options):
    return ovenet.create_model("four_convolutions", num_classes=K, **options)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (2, 31, 47), generator=rng)
    labels[:, :3] = 255
    return torch.randn(2, 3, 31, 47, generator=rng), labels


@pytest.mark.parametrize("head", ["fcn", "ocr"])
@pytest.mark.parametrize("seed", [None, "shared"])
def test_the_loss_is_that_of_a_configuration(tiny_cfg, batch, head, seed):
    images, labels = batch
    model = model_of(head=head, seed=seed)
    part = {"MODEL.HEAD.NAME": head, "MODEL.SEED.NAME": seed or "none", "MODEL.ALIGN_CORNERS": True}
    cfg = tiny_cfg(*[x for item in part.items() for x in item], "LOSS.CLASS_BALANCE", "False")
    output = model(images)
    own = ovenet.create_criterion(model)(output, labels)
    other = builders.build_criterion(cfg)(output, labels)
    assert torch.equal(own.total, other.total)
    assert own.terms.keys() == other.terms.keys()
    own.total.backward()


def test_settings_of_the_loss(batch):
    images, labels = batch
    model = model_of(seed="shared")
    output = model(images)
    plain = ovenet.create_criterion(model)(output, labels)
    terms = plain.terms
    changed = ovenet.create_criterion(model, kappa=0.25, lambda_=2.0, class_weights=[1, 1, 1])(output, labels).total
    expected = terms["fused"] + 0.25 * (terms["initial"] + terms["seed"]) + 2 * terms["confidence"]
    torch.testing.assert_close(changed, expected)
    for options, message in (
        ({"kapa": 1}, "kapa: .*kappa"),
        ({"class_weights": [1, 2]}, "class_weights has 2 .* 3 classes"),
        ({"output_weights": [1, 2]}, r"output_weights has 2 .* 1 score map"),
        ({"terms": ({"NAME": "dicey"},)}, "dicey.*dice"),
    ):
        with pytest.raises(UserError, match=message):
            ovenet.create_criterion(model, **options)
    with pytest.raises(UserError, match="composed from its parts"):
        ovenet.create_criterion(Segmentor(model.backbone, model.neck, model.head))
    with pytest.raises(UserError, match=r"Conv2d is no model of ovenet.*create_model"):
        ovenet.create_criterion(nn.Conv2d(3, 3, 1))


def test_a_head_of_queries_is_trained_by_its_masks():
    pytest.importorskip("transformers")
    with meta_device():
        model = ovenet.create_model("mit_b0", num_classes=K, head="mask2former", neck="none")
    criterion = ovenet.create_criterion(model)
    assert criterion.queries is not None
    assert ovenet.create_criterion(model_of()).queries is None


def slow_iou(predicted, labels):
    """IoU of each class, pixel by pixel."""
    ious = []
    for k in range(K):
        both = either = 0
        for p, y in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if y != 255:
                both += p == y == k
                either += k in (p, y)
        ious.append(both / either)
    return ious


def test_scores_of_batches_equal_a_slow_count_and_the_projects(batch):
    images, labels = batch
    model = model_of(seed="shared").eval()
    evaluator = BatchEvaluator(K)
    with torch.no_grad():
        output = model(images)
    evaluator.update(output, labels)
    scores = evaluator.compute()
    assert list(scores) == ["initial", "seed", "fused"]
    for name, maps in output.predictions().items():
        predicted = nn.functional.interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=True).argmax(1)
        np.testing.assert_allclose(scores[name].iou, slow_iou(predicted, labels), rtol=1e-12)
    assert evaluator.compute()["fused"].mean_iou == scores["fused"].mean_iou  # asking changes nothing
    predictor = ovenet.Predictor(model, classes=K)
    whole = SegEvaluator(predictor.info, tuple(scores), ignore_label=255, detailed=False, device=torch.device("cpu"))
    raw = [(255 * torch.rand(31, 47, 3)).byte().numpy() for _ in labels]
    for image, label in zip(raw, labels, strict=True):
        whole.add(label.numpy().astype(np.int16), predictor.predict(image), "")
    data = {"images": raw, "masks": [x.numpy() for x in labels], "classes": K}
    dataset = SegmentationDataset(**data, normalization=model.normalization)
    found = ovenet.evaluate(model, DataLoader(dataset))
    evaluator.reset()
    for image, label in dataset:
        with torch.no_grad():
            evaluator.update(model(image[None]), label[None])
    assert found["seed"].mean_iou == evaluator.compute()["seed"].mean_iou
    tables = dict(zip(scores, whole.counts["confusion"].sum(dim=(0, 2)), strict=True))
    assert all((evaluator.counts[name] - tables[name]).abs().sum() <= 4 for name in scores)  # ties of float32
    with pytest.raises(UserError, match=r"normalization=model\.normalization"):
        ovenet.evaluate(model, DataLoader(SegmentationDataset(**data)))


def test_a_loader_is_scored_and_the_model_stays_in_its_mode(batch):
    images, labels = batch
    model = model_of().train()
    batches = [(images[:1], labels[:1]), {"pixel_values": images[1:], "labels": labels[1:]}]
    scores = ovenet.evaluate(model, batches, classes=["a", "b", "c"])
    assert model.training
    assert list(scores) == ["fused"]
    assert scores["fused"].class_names == ("a", "b", "c")
    together = ovenet.evaluate(nn.DataParallel(model), [(images, labels)])
    assert together["fused"].mean_iou == scores["fused"].mean_iou
    for bad, message in (([], "no batch"), ([images], "without labels")):
        with pytest.raises(UserError, match=message):
            ovenet.evaluate(model, bad)
    with pytest.raises(UserError, match="2 names, and the model predicts 3"):
        ovenet.evaluate(model, batches, classes=["a", "b"])
