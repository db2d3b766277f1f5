"""Where the data that travels with the package lies: `search_spaces` and `storage`."""

from pathlib import Path

__all__ = ["data_folder"]

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `name`: inside the package once installed, beside it in a checkout.

    Inside comes first, since beside an installed package stands whatever else is installed.
    """
    inside = _PACKAGE / "_data" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
