"""What a result must carry: hardware, versions; and where it is written."""

import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ranksearch import latency

PACKAGES = ("torch", "ray", "optuna", "sqlalchemy", "ranksearch")
RESULTS = Path(__file__).parent / "results"


def conditions(device: str | None = None) -> dict[str, Any]:
    environment = latency.environment(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return {
        "device": environment.device_model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of those that are installed: not every benchmark needs all."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write(name: str, result: dict[str, Any]) -> None:
    """Print the result and keep it."""
    keep(name, result)
    print(json.dumps(result, indent=2))


def keep(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
