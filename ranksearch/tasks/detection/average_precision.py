"""Average precision at an overlap of one half: one number over all examples, the area under precision and recall.

The rule of PASCAL VOC since 2010 (M. Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 Development
Kit", section 3.4.1): detections in order of falling score; one is true where the object of its image that it overlaps
most is overlapped by at least half and has not been found before; with the precision at a recall made the largest at
that or any higher recall,

    AP = Σ_{true detections} precision / #objects
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from ranksearch.tasks.detection.boxes import areas, decode, overlaps

__all__ = ["AveragePrecision", "area_under", "detect"]

FOUND = 0.5  # overlap of a true detection
DUPLICATE = 0.45  # overlap above which the less certain of two detections is dropped
CANDIDATES = 100  # priors of an image that are looked at
LOWEST_SCORE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class AveragePrecision:
    """((logits (N, P, 2), offsets (N, P, 4)), objects (N, M, 4)) -> scalar in [0, 1]; NaN without objects.

    Objects without area are padding.
    """

    priors: Tensor

    def __call__(self, outputs: tuple[Tensor, Tensor], objects: Tensor) -> Tensor:
        scores, boxes, is_kept = detect(*outputs, self.priors)
        image = is_kept.nonzero()[:, 0]
        is_true = _is_true(boxes[is_kept], image, objects)
        return area_under(scores[is_kept], is_true, int((areas(objects) > 0).sum()))


def detect(logits: Tensor, offsets: Tensor, priors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, K) in falling order, boxes (N, K, 4) and whether each is a detection (N, K), of K candidates an image.

    A candidate is no detection where it is hardly certain, or overlaps a more certain detection.
    """
    odds, chosen = (logits[..., 1] - logits[..., 0]).topk(min(CANDIDATES, len(priors)), dim=1)
    boxes = decode(offsets.gather(1, chosen[..., None].expand(-1, -1, 4)), priors[chosen])
    scores = odds.sigmoid()
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    for image, count in enumerate((scores > LOWEST_SCORE).sum(1).tolist()):
        is_kept[image, nms(boxes[image, :count], odds[image, :count], DUPLICATE)] = True
    return scores, boxes, is_kept


def _is_true(boxes: Tensor, image: Tensor, objects: Tensor) -> Tensor:
    """(D,) whether a detection is the first of its object; boxes (D, 4) by image, in falling order of score."""
    overlap, nearest = overlaps(boxes[:, None], objects[image])[:, 0].max(1)
    hits = (overlap >= FOUND).nonzero()[:, 0]
    found = (image * objects.shape[1] + nearest)[hits].tolist()
    first = dict(zip(reversed(found), hits.flip(0).tolist(), strict=True))  # the last entry of a key stays
    is_true = torch.zeros(len(boxes), dtype=torch.bool)
    is_true[list(first.values())] = True
    return is_true


def area_under(scores: Tensor, is_true: Tensor, num_objects: int) -> Tensor:
    """Average precision of detections (D,) of all images; equal scores count in the order given."""
    hits = is_true[scores.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    highest = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return (highest * hits).sum() / (num_objects or torch.nan)
