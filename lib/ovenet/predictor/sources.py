"""Finds the weights of a trained model."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from ovenet.config.loading import EXPERIMENTS
from ovenet.deployment import is_exported
from ovenet.engine.checkpoint import BEST, BEST_EMA, FINAL, FINAL_EMA
from ovenet.models.pretrained import (
    MODELS,
    PretrainedModel,
    bundled_models,
    pretrained_models,
    pretrained_of,
    weights_path,
)
from ovenet.models.weight_files import SAFETENSORS
from ovenet.predictor.run_folder import weights_of_run
from ovenet.predictor.sharing import WEIGHTS, weights_of_folder
from ovenet.utils.run_names import run_title

_WEIGHTS_SUFFIXES = (".pth", ".pt", ".tar", SAFETENSORS)
RUN_WEIGHTS = (BEST, BEST_EMA, FINAL, FINAL_EMA)
_GENERAL = ("ade20k", "cocostuff", "pascal_context", "pascal_voc")  # datasets of all kinds of photographs


def find_weights(source: str | Path) -> Path:
    """The file of weights for a path or the name of a model, see `ovenet.models.pretrained.weights_path`.

    Args:
        source: a file; the folder of a run, or one written by `Predictor.save_pretrained`; or a name.

    Raises:
        UserError: no weights are found.
    """
    path = Path(source)
    if path.is_dir():
        return weights_of_folder(path) if (path / WEIGHTS).exists() else weights_of_run(path)
    return weights_path(source)


def name_of(path: Path) -> str:
    """The name of the model in a file of weights: that of `list_models`, or the file's without its suffix."""
    model = pretrained_of(path)
    return path.stem if model is None else model.name


def title_of(path: Path) -> str:
    """What a model is called on pages: as in `name_of`, but by its run where the file is one that every run has."""
    return run_title(path.parent) if path.name in RUN_WEIGHTS else name_of(path)


def is_model(source: str) -> bool:
    """Whether a word means a model: a name, a file of weights, an exported file, or the folder of a run or a model."""
    path = Path(source)
    if path.is_dir():
        return any((path / weights).exists() for weights in (*RUN_WEIGHTS, WEIGHTS))
    if path.exists():
        return path.suffix in _WEIGHTS_SUFFIXES or is_exported(path)
    return source in bundled_models() or source in pretrained_models()


def is_shared(path: Path) -> bool:
    """Whether a file of weights came along or was published, so that its folder is not that of a run."""
    return path.parent == MODELS or pretrained_of(path) is not None


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of models.

    Args:
        pattern: of names, with ``*`` and ``?``.
        pretrained: those with trained weights, which `ovenet.load` takes: the bundled ones, and those that others
            publish; else the experiments that come along, which ``--cfg`` and `ovenet.load_config` take.
    """
    if pretrained:
        names = [*bundled_models(), *pretrained_models()]
    else:
        files = EXPERIMENTS.glob("[!_]*/**/*.yaml")
        paths = (file.relative_to(EXPERIMENTS) for file in sorted(files))
        names = [f"{path.parts[0]}/{path.stem}" for path in paths if path.parts[1] in ("published", path.name)]
    return [name for name in names if fnmatchcase(name, pattern)]


def models_here() -> list[str]:
    """Names of the models that are on this machine: general ones before those of streets, the better ones first."""

    def rank(model: PretrainedModel) -> tuple[int, float]:
        folder = model.experiment.split("/")[0]
        place = _GENERAL.index(folder) if folder in _GENERAL else len(_GENERAL)
        return place, -max(score or 0.0 for score in model.mean_iou)

    published = [model for model in pretrained_models().values() if model.find() is not None]
    return [*(model.name for model in sorted(published, key=rank)), *bundled_models()]
