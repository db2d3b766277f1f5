"""A training as a file: what a killed one needs to go on as if nothing had happened."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ranksearch.errors import ConfigError

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """Whole or not at all, and on the disk when this returns. `key` names the training that it is of."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("wb") as file:
        torch.save({"key": key, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """The state, on the CPU; None where there is no such file. Raises ConfigError where it is damaged or another's."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read; delete it to begin again") from error
    if saved["key"] != key:
        raise ConfigError(f"checkpoint {path} is of another training; delete it to begin again, or name another file")
    return saved["state"]
