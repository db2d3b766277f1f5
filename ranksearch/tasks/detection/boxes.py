"""Boxes as corners (x0, y0, x1, y1), as centres (x, y, width, height), and as offsets from prior boxes.

With a prior (x, y, w, h) the offsets of a box (x', y', w', h') are (Liu et al. 2016, section 2.2, with the variances
0.1 and 0.2 of its implementation)

    ((x' − x) / w / 0.1, (y' − y) / h / 0.1, ln(w' / w) / 0.2, ln(h' / h) / 0.2)
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert

__all__ = ["areas", "decode", "encode", "overlaps", "to_centres", "to_corners"]

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def to_corners(centres: Tensor) -> Tensor:
    """(…, 4) -> (…, 4)"""
    return box_convert(centres, "cxcywh", "xyxy")


def to_centres(corners: Tensor) -> Tensor:
    """(…, 4) -> (…, 4)"""
    return box_convert(corners, "xyxy", "cxcywh")


def encode(corners: Tensor, priors: Tensor) -> Tensor:
    """Offsets (…, P, 4) of boxes (…, P, 4) from priors (P, 4), all in corners but the offsets."""
    (middle, size), (prior_middle, prior_size) = (to_centres(boxes).split(2, -1) for boxes in (corners, priors))
    shift = (middle - prior_middle) / prior_size / CENTRE_VARIANCE
    return torch.cat([shift, (size / prior_size).log() / SIZE_VARIANCE], -1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """Boxes (…, P, 4) in corners from offsets (…, P, 4): the inverse of `encode`."""
    (shift, growth), (middle, size) = offsets.split(2, -1), to_centres(priors).split(2, -1)
    centres = [middle + shift * CENTRE_VARIANCE * size, size * (growth * SIZE_VARIANCE).exp()]
    return to_corners(torch.cat(centres, -1))


def areas(corners: Tensor) -> Tensor:
    """(…, 4) -> (…)"""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of corners (…, A, 4) and (…, B, 4): (…, A, B); 0 with a box that has no area."""
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = areas(boxes)[..., :, None] + areas(others)[..., None, :] - both
    return both / either.clamp(min=torch.finfo(boxes.dtype).tiny)
