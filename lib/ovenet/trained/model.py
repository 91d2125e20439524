"""A trained model from its file: network, settings and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ovenet.builders.data import dataset_info
from ovenet.builders.inference import inference_settings
from ovenet.builders.models import build_model
from ovenet.config import load_config, load_config_text
from ovenet.data.catalog import find_dataset
from ovenet.data.info import DatasetInfo
from ovenet.engine.checkpoint import SAFETENSORS, read_checkpoint, weights_of
from ovenet.errors import UserError
from ovenet.evaluation.inference import InferenceSettings
from ovenet.models import Segmentor
from ovenet.models.weights import load_weights
from ovenet.structures import Normalization
from ovenet.trained.run_folder import weights_of_run
from ovenet.trained.sharing import WEIGHTS, weights_of_folder
from ovenet.utils.bundled import bundled_folder

MODELS = bundled_folder("pretrained_models")


@dataclass(frozen=True)
class TrainedModel:
    """A model with its configuration and classes, from a file of weights.

    Attributes:
        path: of the file.
        model: on the CPU, in evaluation mode.
        cfg: its configuration.
        info: the classes.
        normalization: of the pixels, as they were in training.
    """

    path: Path
    model: Segmentor
    cfg: CfgNode
    info: DatasetInfo
    normalization: Normalization

    @property
    def settings(self) -> InferenceSettings:
        """How the ``TEST`` section runs images."""
        return inference_settings(self.cfg, self.info, self.normalization)


def read_trained(path: str | Path, *, config: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainedModel:
    """Builds the model that a file of weights belongs to.

    Args:
        path: see `Predictor.from_checkpoint`, as all arguments.

    Raises:
        UserError: the file cannot be read safely, carries no configuration, or does not fit the configuration.
    """
    content = read_checkpoint(path)
    if config is not None:
        cfg = load_config(config, overrides)
        info = dataset_info(cfg)
    elif isinstance(content.get("config"), str):
        cfg = load_config_text(content["config"], str(path), overrides)
        info = _carried_info(content, cfg, path)
    else:
        raise UserError(f"{path}: holds weights but no configuration; name its experiment file (--cfg FILE)")
    model = build_model(cfg)
    report = load_weights(model, weights_of(content, path), str(path), whole=True)
    report.require(1.0, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
    return TrainedModel(Path(path), model.eval(), cfg, info, _carried_normalization(content, model, path))


def find_weights(source: str | Path) -> Path:
    """The file of weights in a folder, at a path, or of a bundled model's name.

    A folder is that of a run, or one that `Predictor.save_pretrained` wrote.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        return weights_of_folder(path) if (path / WEIGHTS).exists() else weights_of_run(path)
    bundled = MODELS / f"{source}{SAFETENSORS}"
    if not path.exists() and path.name == str(source) and bundled.is_file():
        return bundled
    if not path.exists() and not path.suffix:
        names = sorted(file.stem for file in MODELS.glob(f"*{SAFETENSORS}"))
        raise UserError(f"{source}: no run's folder, file of weights or model that comes along ({', '.join(names)})")
    return path


def _carried_normalization(content: dict[str, Any], model: Segmentor, path: str | Path) -> Normalization:
    """How the weights' pixels were normalised; the backbone's own way for files that do not say."""
    if "normalization" not in content:
        return model.normalization
    carried = content["normalization"]
    try:
        normalization = Normalization(tuple(carried["mean"]), tuple(carried["std"]), carried["channel_order"])
        is_whole = len(normalization.mean) == len(normalization.std) == 3 and min(normalization.std) > 0
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its normalization is damaged ({error!r}); save the weights again") from error
    if not is_whole:
        raise UserError(f"{path}: its normalization is {carried}; expected three numbers each, deviations above 0")
    return normalization


def _carried_info(content: dict[str, Any], cfg: CfgNode, path: str | Path) -> DatasetInfo:
    """The classes that a checkpoint carries, or the catalog's for files written before checkpoints carried them."""
    if "dataset_info" in content:
        try:
            return DatasetInfo.from_dict(content["dataset_info"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path}: its dataset_info is damaged ({error!r}); name the experiment file (--cfg FILE)"
            ) from error
    folder = Path(cfg.DATASET.ROOT) / cfg.DATASET.DATASET
    return find_dataset(cfg.DATASET.DATASET, folder, num_classes=cfg.DATASET.NUM_CLASSES)
