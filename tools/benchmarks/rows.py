"""The rows of the tables, but those for a card: see `benchmarks.card_rows`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from benchmarks.cases import counts_case, loss_case, sample_case
from benchmarks.decoders import OFFSEG_T, SRM_CRM, carafe_case, classifier_switch, network_switch, offset_learning_case
from benchmarks.feeding import FEEDING
from benchmarks.inputs import Options
from benchmarks.measure import Case
from benchmarks.networks import (
    RANDOM,
    SMALL,
    SMALL_OCR,
    inference_case,
    inference_switch,
    runtime_case,
    step_case,
    step_switch,
)

Row = Case | AbstractContextManager[Case]
CITY, ADE = (19, (512, 1024)), (150, (520, 520))
OHEM = (0.9, 100_000)
FEW_HARD = (1e-6, 400_000)  # nearly no pixel is below the threshold: the second pass is needed
MANY = {"min_ratio": 3.2, "max_memory": 0.25}
ANY = {"min_ratio": 2.0, "max_memory": 0.34}
LOSSES: dict[str, Callable[[Options], Case]] = {
    "loss ade20k": lambda o: loss_case(o, "loss, ADE20K (150 classes, 520x520, batch 2)", *ADE, **MANY),
    "loss ade20k ohem": lambda o: loss_case(o, "loss with OHEM, ADE20K", *ADE, ohem=OHEM, **MANY),
    "loss cityscapes": lambda o: loss_case(o, "loss, Cityscapes (19 classes, 512x1024, batch 2)", *CITY, **ANY),
    "loss cityscapes ohem": lambda o: loss_case(o, "loss with OHEM, Cityscapes", *CITY, ohem=OHEM, **ANY),
    "loss cityscapes few hard": lambda o: loss_case(
        o, "loss with OHEM, Cityscapes, few hard pixels", *CITY, ohem=FEW_HARD, **ANY
    ),
}
ON_CPU: dict[str, Callable[[Options], Row]] = {
    **LOSSES,
    "sample": lambda o: sample_case(o, cached=False),
    "sample cached": lambda o: sample_case(o, cached=True),
    **FEEDING,
    "counts": lambda o: counts_case(o, from_scores=False),
    "counts from scores": lambda o: counts_case(o, from_scores=True),
    "step": lambda o: step_case(o, SMALL, "training step, OVeNet on HRNet-W18-small-v2, 512x1024, batch 2", RANDOM),
    "offset learning": lambda o: offset_learning_case(o, 150, (128, 128)),
    "offset learning large": lambda o: offset_learning_case(o, 150, (256, 512)),
    "carafe": carafe_case,
    "onnxruntime": lambda o: runtime_case(o, SMALL_OCR, "onnxruntime"),
    "openvino": lambda o: runtime_case(o, SMALL_OCR, "openvino"),
    "openvino bf16": lambda o: runtime_case(o, SMALL_OCR, "openvino", precision="bf16"),
    "test": lambda o: inference_case(
        o, SMALL, "test of a 512x1024 image, 6 scales, flipped, HRNet-W18-small-v2", (512, 1024), RANDOM
    ),
}
SWITCHES: dict[str, Callable[[Options], Row]] = {
    "fold": lambda o: inference_switch(
        o, "TEST.FUSE_CONV_BN True (default)", ("TEST.FUSE_CONV_BN", "True"), ("TEST.FUSE_CONV_BN", "False")
    ),
    "flip": lambda o: inference_switch(o, "TEST.BATCH_SIZE_PER_GPU 2, flipped", ("TEST.BATCH_SIZE_PER_GPU", "2")),
    "test bf16": lambda o: inference_switch(o, "TEST.PRECISION bf16", ("TEST.PRECISION", "bf16")),
    "test compile": lambda o: inference_switch(o, "TEST.COMPILE default", ("TEST.COMPILE", "default")),
    "backend": lambda o: step_switch(o, "LOSS.BACKEND auto (default)", (), ("LOSS.BACKEND", "plain")),
    "train bf16": lambda o: step_switch(o, "TRAIN.PRECISION bf16", ("TRAIN.PRECISION", "bf16")),
    "train compile": lambda o: step_switch(o, "TRAIN.COMPILE default", ("TRAIN.COMPILE", "default")),
    "offseg": lambda o: network_switch(
        o,
        "OffSeg-T, 150 classes, 512x512, for bilinear upsampling and a 1x1 convolution",
        OFFSEG_T,
        (512, 512),
        ("MODEL.NECK.NAME", "concat", "MODEL.NECK.PROJECTION", "64", "MODEL.HEAD.CLASSIFIER", "conv1x1"),
    ),
    "offseg classifier": lambda o: network_switch(
        o,
        "OffSeg-T, 150 classes, 512x512, for a 1x1 convolution",
        OFFSEG_T,
        (512, 512),
        ("MODEL.HEAD.CLASSIFIER", "conv1x1"),
    ),
    "offset learning 19": lambda o: classifier_switch(o, 19, (128, 128)),
    "offset learning 150": lambda o: classifier_switch(o, 150, (128, 128)),
    "offset learning 150 large": lambda o: classifier_switch(o, 150, (256, 512)),
    **{
        f"srm_crm {name}": partial(
            lambda o, off, text: network_switch(o, f"MSCAN-S, 512x1024: {text}", SRM_CRM, (512, 1024), off),
            off=off,
            text=text,
        )
        for name, off, text in (
            ("srm", ("MODEL.NECK.UPSAMPLER", "bilinear"), "SRM for bilinear upsampling"),
            ("crm", ("MODEL.NECK.CONTEXT", "none"), "CRM for a projection"),
            ("both", ("MODEL.NECK.UPSAMPLER", "bilinear", "MODEL.NECK.CONTEXT", "none"), "both"),
        )
    },
    "checkpoint_activations": lambda o: step_switch(
        o, "TRAIN.CHECKPOINT_ACTIVATIONS True", ("TRAIN.CHECKPOINT_ACTIVATIONS", "True")
    ),
}
GUARDED = (*LOSSES, "sample", "sample cached", "counts", "counts from scores", "carafe")  # rows of --check
