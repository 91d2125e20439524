"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    """As the package says; "(not installed)" in a checkout that is used as it is."""
    try:
        return metadata.version("ovenet")
    except metadata.PackageNotFoundError:
        return "(not installed)"
