"""What runs are called on pages."""

from pathlib import Path

FIT = "fit"  # run of ovenet fit, in the folder of its results


def run_title(folder: Path) -> str:
    """The name of a run's folder; that of the folder of results, where the run is one of ``ovenet fit``."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == FIT else folder.name
