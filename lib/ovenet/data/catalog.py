"""The known datasets: the catalog in ``datasets/*.json``, and any folder with a ``dataset.json``."""

from __future__ import annotations

from pathlib import Path

from ovenet.data.description import own_description, read_description
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError

DESCRIPTION = "dataset.json"
_FOLDER = Path(__file__).parent / "datasets"
_ALIASES = {"pascal_ctx": "pascal_context"}  # names in public config files

CATALOG: dict[str, DatasetInfo] = {
    path.stem: read_description(path, path.stem) for path in sorted(_FOLDER.glob("*.json"))
}


def catalog_name(name: str) -> str:
    """The catalog's name of a dataset, which may have another name in public files."""
    return _ALIASES.get(name, name)


def find_dataset(name: str, folder: Path, *, num_classes: int | None = None) -> DatasetInfo:
    """The dataset of a name: the catalog's entry, or the one that ``<folder>/dataset.json`` describes.

    Args:
        name: of the dataset.
        folder: folder of the data.
        num_classes: ``K``, which selects between variants: 59 or 60 classes of PASCAL-Context, 19 classes or 7
            categories of Cityscapes.

    Raises:
        UserError: there is no dataset of that name, or its description is wrong.
    """
    name = catalog_name(name)
    if name in CATALOG:
        info = CATALOG[name]
    elif (folder / DESCRIPTION).is_file():
        info = own_description(folder / DESCRIPTION, name)
    else:
        raise UserError(
            f"DATASET.DATASET is {name!r}; expected one of {', '.join(CATALOG)}, or a folder of your own "
            f"with {folder / DESCRIPTION} (see docs/data.md)"
        )
    if info.optional_background and num_classes == info.num_classes - 1:
        return info.without_background()
    if info.categories and num_classes == len(info.categories):
        return info.by_category()
    return info
