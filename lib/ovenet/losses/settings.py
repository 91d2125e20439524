"""Settings of the training loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ovenet.fields import setting


@dataclass(frozen=True)
class LossSettings:
    """The loss of an OVeNet or of its baseline."""

    use_ohem: bool = setting(False, "mine hard pixels in the final map")
    ohemthres: float = setting(0.9, "pixels below this probability of their class are hard", above=0, at_most=1)
    ohemkeep: int = setting(100000, "minimum number of pixels kept per batch and process (approximate)", at_least=1)
    class_balance: bool = setting(
        True, "weight the classes: by CLASS_WEIGHTS or, without it, as published for the dataset"
    )
    class_weights: str = setting(
        "", 'audit.json of tools/audit_data.py, for its suggested weights; "" for none', role="input"
    )
    balance_weights: tuple[float, ...] = setting(
        (), "weight per score map, auxiliary first; [] is [1] or, with OCR, [0.4, 1]"
    )
    terms: tuple[dict[str, Any], ...] = setting(
        (), "[{NAME, WEIGHT, …arguments}], see ovenet.list_losses(); [] is cross-entropy, with OHEM if USE_OHEM"
    )
    average: str = setting(
        "valid",
        "pixels over which cross-entropy (with OHEM: that of auxiliary maps) is averaged",
        one_of=("valid", "all"),
    )
    kappa: float = setting(0.5, "κ, weight of the losses of the initial and the seed prediction", at_least=0)
    lambda_: float = setting(1.0, "λ, weight of the confidence loss", at_least=0)
    confidence_target: str = setting(
        "same_class",
        "target of the confidence: same_class is the paper's, see docs/models.md",
        one_of=("same_class", "better_scores"),
    )
    interior: float = setting(
        0.0,
        "weight of a loss that turns offsets near borders towards the interior of the pixel's class; 0 is the paper's",
        at_least=0,
    )
    boundary_weight: float = setting(
        0.0,
        "pixels near a border of labels weigh 1 + this much in cross_entropy, ohem and focal; 0 for all alike",
        at_least=0,
    )
    boundary_width: int = setting(
        4, "pixels within this many rows and columns of another class are near a border", at_least=1
    )
    backend: str = setting(
        "auto",
        "implementation of the loss; all give the same result, triton needs CUDA",
        one_of=("auto", "plain", "blocked", "triton"),
        role="speed",
    )


@dataclass(frozen=True)
class ContrastSettings:
    """The contrastive loss between embeddings of pixels, for heads with EMBEDDING."""

    weight: float = setting(0.0, "weight of the contrastive loss; 0 for none", at_least=0)
    start: int = setting(5000, "iterations before the loss is added", at_least=0)
    max_samples: int = setting(1024, "number of pixels of a batch that are compared", at_least=4)
    max_views: int = setting(100, "of these, pixels per class and image; classes with fewer are left out", at_least=2)
