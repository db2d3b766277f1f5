"""Random views of a batch of images, one draw an image, all at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ranksearch.errors import ConfigError

__all__ = ["Affine", "Contrast", "CropFlip", "Raw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CropFlip:
    """Shift by up to `padding` pixels either way (the border is repeated) and, where `flip`, mirror every other image.

    He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2. (N, C, H, W) -> (N, C, H, W).
    """

    padding: int
    flip: bool

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.padding:
            images = self._crop(images, generator)
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
        return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)

    def _crop(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        N, _, H, W = images.shape
        offsets = torch.randint(2 * self.padding + 1, (2, N, 1), generator=generator, device=generator.device)
        top, left = offsets.to(images.device)
        rows = (top + torch.arange(H, device=images.device))[:, :, None]
        columns = (left + torch.arange(W, device=images.device))[:, None, :]
        padded_NHWC = functional.pad(images, [self.padding] * 4, mode="replicate").permute(0, 2, 3, 1)
        examples = torch.arange(N, device=images.device)[:, None, None]
        return padded_NHWC[examples, rows, columns].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """Each channel of an image brought nearer to its mean or further from it, by a factor that is drawn for the image.

    Normalising a channel before or after makes no difference. Garipov et al. 2016 (arXiv 1611.03214) train with
    0.75 to 1.25. (N, C, H, W) -> (N, C, H, W). Raises ConfigError on anything else.
    """

    low: float = 0.75
    high: float = 1.25

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            raise ConfigError(
                "augmentation is 'contrast' and the inputs are no images (N, C, H, W); use 'data' or 'none'"
            )
        drawn = torch.rand(len(images), generator=generator, device=generator.device).to(images)
        factor = (self.low + (self.high - self.low) * drawn).view(-1, 1, 1, 1)
        mean = images.mean((2, 3), keepdim=True)
        return mean + factor * (images - mean)


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """Rotate, scale, shear and shift, each drawn evenly within its bound, then add Gaussian noise.

    degrees: rotation, either way. scale, shear: share of the size, either way. shift: share of the half width, either
    way. noise: standard deviation, in the images' unit. background: the value outside of the image, one a channel.
    """

    degrees: float
    scale: float
    shear: float
    shift: float
    noise: float
    background: tuple[float, ...] = (0.0,)

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        background = torch.tensor(self.background, device=images.device).view(1, -1, 1, 1)
        grid = functional.affine_grid(
            self._draw(len(images), generator).to(images), list(images.shape), align_corners=False
        )
        moved = functional.grid_sample(images - background, grid, align_corners=False) + background
        noise = torch.randn(images.shape, generator=generator, device=generator.device)
        return moved + self.noise * noise.to(images)

    def _draw(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Affine matrices (num, 2, 3) from a view's coordinates to the image's."""
        drawn = torch.rand(6, num, generator=generator, device=generator.device) * 2 - 1
        angle = drawn[0] * torch.pi * self.degrees / 180
        wide, high, shear = 1 + self.scale * drawn[1], 1 + self.scale * drawn[2], self.shear * drawn[3]
        rows = [
            wide * angle.cos(), shear - high * angle.sin(), self.shift * drawn[4],
            wide * angle.sin(), high * angle.cos(), self.shift * drawn[5],
        ]  # fmt: skip
        return torch.stack(rows, dim=1).view(num, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Raw:
    """Another `view`, of images as they were before every pixel was normalised by its own `mean` and `std` (C, H, W).

    Pixels that move or change places would else keep what belongs to the old place.
    """

    view: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mean, std = self.mean.to(images), self.std.to(images)
        return (self.view(images * std + mean, generator) - mean) / std
