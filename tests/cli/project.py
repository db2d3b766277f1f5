"""A user's project: a small trained network in a file, its weights, its data, and what a command leaves behind."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

NETS = '''
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 96, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 4),
    )


def wider():
    model = net()
    model[9] = nn.Linear(96, 6)
    return model


def strided():
    """The same weights fit, and the function is another one."""
    model = net()
    model[3].stride = (1, 1)
    return model


def number():
    return 3


def raises():
    raise RuntimeError("first line\\nsecond line")


def swapped(outputs, targets):
    return (outputs.argmax(1) != targets).float()
'''


def make_project(folder: Path) -> None:
    (folder / "nets.py").write_text(NETS)
    arrays = _arrays()
    np.savez(folder / "data.npz", **arrays)
    save_file(_trained(folder, arrays).state_dict(), folder / "net.safetensors")
    (folder / "ranksearch.toml").write_text(TOML)


TOML = """\
model = "nets.py:net"
weights = "net.safetensors"
data = "npz:data.npz"
executor = "inline"
study = "toy"
budget = 8
profile_seconds = 0

[finetune]
steps = 2
batch_size = 32
threads = 1

[measure]
max_seconds = 0.05
min_blocks = 2
"""


def _arrays() -> dict[str, np.ndarray]:
    """Which quarter of the picture is bright? The noise lets one be wrong."""
    generator = np.random.default_rng(0)

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(4, size=count)
        pixels = generator.normal(100, 40, (count, 8, 8))
        for image, label in zip(pixels, labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 25
        return pixels.clip(0, 255).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = images(1280), images(256)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def dense_net(folder: Path) -> nn.Module:
    found: dict = {}
    exec((folder / "nets.py").read_text(), found)
    return found["net"]()


def _trained(folder: Path, arrays: dict[str, np.ndarray]) -> nn.Module:
    pixels = torch.from_numpy(arrays["x_train"]).float()[:, None] / 255
    inputs, labels = (pixels - pixels.mean()) / pixels.std(), torch.from_numpy(arrays["y_train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = dense_net(folder)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for _ in range(4):
            for rows in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    return model.eval()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change; Python's own bytecode aside."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


__all__ = ["TOML", "dense_net", "listing", "make_project"]
