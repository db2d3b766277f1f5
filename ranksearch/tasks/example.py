"""The built-in example: a small residual CNN for `digits`, trained on first use and cached.

The net (468k parameters): a 3×3 stem to 112 channels at half resolution, two residual blocks of two 3×3 convolutions
(112 channels, 8×8 then 4×4), global average pooling, one linear layer. It is wide rather than deep, so that low rank
can win latency at batch 8 on a CPU, as in networks people compress. Trained by SGD with a one-cycle learning rate
(L. N. Smith and N. Topin, "Super-Convergence", 2018) on augmented views of the training scans.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import nn
from torch.nn import functional

from ranksearch.records import key_of
from ranksearch.tasks.sources.digits import VIEW, load_digits
from ranksearch.tasks.trained import TrainRecipe, cached, fit
from ranksearch.threads import threads

__all__ = ["ExampleNet", "example_model", "train_example"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(TrainRecipe):
    """How the example is trained. A change of any field, or of `version`, trains it anew."""

    version: int = 1
    channels: int = 112
    seed: int = 0


RECIPE = Recipe(epochs=20, batch_size=32, learning_rate=0.1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al., "Deep Residual Learning for Image Recognition", 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ExampleNet(nn.Module):
    """(N, 1, 16, 16) -> logits (N, 10)."""

    def __init__(self, channels: int = RECIPE.channels, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.block1 = ResidualBlock(channels, channels, stride=1)
        self.block2 = ResidualBlock(channels, channels, stride=2)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))


def example_model(cache_dir: Path | None = None) -> ExampleNet:
    """The trained example, from `cache_dir` (the user's cache folder by default), trained and put there where missing.

    Of several processes at once one trains and the others wait. A cache that cannot be written is done without.
    """
    file = f"example-{key_of({**asdict(RECIPE), 'view': asdict(VIEW)})}.safetensors"
    return cached((cache_dir or user_cache_path("ranksearch")) / file, ExampleNet, train_example)


def train_example(recipe: Recipe = RECIPE) -> ExampleNet:
    """The example trained from scratch, on one thread: some ten seconds. The global random state is left as it was."""
    log.info("training the example model on digits (once; it is cached)")
    with torch.random.fork_rng(devices=[]), threads(1):
        torch.manual_seed(recipe.seed)
        model, data = ExampleNet(recipe.channels), load_digits("dataset")
        fit(model, data.train, recipe, loss=functional.cross_entropy, augment=data.augment, seed=recipe.seed)
    return model.eval()
