"""Settings of a test: weights, images, scores and files."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.fields import setting

CONFIDENCES = ("none", "probability", "seed", "product")


@dataclass(frozen=True)
class TestSettings:
    """Weights, images, scores and files of a test."""

    __test__ = False  # no test class

    model_file: str = setting(
        "", 'weights to test, a file or a name; "" is the run\'s best.pth, else its final_state.pth', role="place"
    )
    num_samples: int = setting(0, "use only the first N lines of the list; 0 is all", at_least=0, in_test=True)
    corruption: str = setting(
        "", 'corrupts the images of a test (docs/evaluation.md has the kinds); "" is none', role="speed", in_test=True
    )
    severity: int = setting(3, "of CORRUPTION", at_least=1, at_most=5, role="speed", in_test=True)
    save_predictions: bool = setting(False, "write id and colour PNGs", role="speed")
    details: bool = setting(
        True,
        "score edges, segment sizes, confidence and seeds too; False is faster",
        role="speed",
        in_test=True,
    )
    uncertainty: str = setting(
        "none",
        "uncertainty-aware IoU, by masks of invalid pixels; confidence: the class's probability, the seed's F, or both",
        one_of=CONFIDENCES,
        role="speed",
        in_test=True,
    )
    report: bool = setting(False, "write report.html, with a gallery of the images (needs DETAILS)", role="speed")
    resume: bool = setting(
        False, "go on with an interrupted evaluation of the same weights, list and settings", role="speed"
    )
