"""Finds the weights of a trained model."""

from __future__ import annotations

from pathlib import Path

from ovenet.errors import UserError
from ovenet.models.weight_files import SAFETENSORS
from ovenet.predictor.run_folder import weights_of_run
from ovenet.predictor.sharing import WEIGHTS, weights_of_folder
from ovenet.utils.bundled import bundled_folder

MODELS = bundled_folder("pretrained_models")


def find_weights(source: str | Path) -> Path:
    """The file of weights for a path or for the name of a bundled model.

    Args:
        source: a file; the folder of a run, or one written by `Predictor.save_pretrained`; or a name.

    Raises:
        UserError: no weights are found.
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
