"""The multibox loss and its distillation: what a detector that scores prior boxes is trained by.

    L = (Σ_positives smooth-L1(offsets − the matched box's) + Σ_{positives, hard negatives} cross entropy) / #positives

A prior is positive where it overlaps an object by at least half, and so is every object's best prior; of the others the
three times as many whose background score is worst are the hard negatives of an image (W. Liu et al., "SSD: Single Shot
MultiBox Detector", 2016, section 2.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ranksearch.tasks.detection.boxes import areas, encode, overlaps

__all__ = ["MultiboxLoss", "distillation", "match"]

MATCHED = 0.5  # overlap from which on a prior is positive


@dataclass(frozen=True, slots=True, eq=False)
class MultiboxLoss:
    """((logits (N, P, 2), offsets (N, P, 4)), objects (N, M, 4)) -> scalar. Objects without area are padding.

    negatives: how many count for every positive; infinity: all.
    """

    priors: Tensor
    negatives: float = 3

    def __call__(self, outputs: tuple[Tensor, Tensor], objects: Tensor) -> Tensor:
        logits, offsets = outputs
        priors = self.priors.to(offsets)
        is_positive, boxes = match(priors, objects)
        is_negative = _hardest(logits.detach(), is_positive, self.negatives)
        entropies = functional.cross_entropy(logits.mT, is_positive.long(), reduction="none")
        wanted = encode(boxes, priors)[is_positive]
        distance = functional.smooth_l1_loss(offsets[is_positive], wanted, reduction="sum")
        return (distance + entropies[is_positive | is_negative].sum()) / is_positive.sum().clamp(min=1)


def match(priors: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Which priors (P, 4) are positive, (N, P), and the object (N, P, 4) that each of them stands for.

    A prior that is the best one of several objects stands for the last of them.
    """
    overlap_NPM = overlaps(priors.expand(len(objects), -1, -1), objects)
    best, chosen = overlap_NPM.max(2)
    is_positive = best >= MATCHED
    for index, prior_N in enumerate(overlap_NPM.argmax(1).unbind(1)):
        is_object = areas(objects[:, index]) > 0
        is_best = is_object[:, None] & (torch.arange(len(priors), device=objects.device) == prior_N[:, None])
        is_positive, chosen = is_positive | is_best, chosen.masked_fill(is_best, index)
    return is_positive, objects.gather(1, chosen[..., None].expand(-1, -1, 4))


def _hardest(logits: Tensor, is_positive: Tensor, negatives: float) -> Tensor:
    """(N, P) negatives whose loss as background is largest, so many for each positive of their image."""
    loss = -logits.log_softmax(2)[..., 0]
    rank = loss.masked_fill(is_positive, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < negatives * is_positive.sum(1, keepdim=True)) & ~is_positive


def distillation(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], _temperature: float) -> Tensor:
    """(Σ KL(teacher ‖ student) of class scores + Σ w smooth-L1 of offsets) / Σ w over all priors.

    w is the teacher's score of an object: where it sees none, its offsets mean nothing. No temperature: softened, the
    many priors on background, whose scores hardly matter, would outweigh the few on objects.
    """
    (logits, offsets), (teacher_logits, teacher_offsets) = student, teacher
    logs, teacher_logs = logits.log_softmax(2), teacher_logits.log_softmax(2)
    weight = teacher_logs[..., 1].exp()
    divergence = functional.kl_div(logs, teacher_logs, reduction="sum", log_target=True)
    distances = functional.smooth_l1_loss(offsets, teacher_offsets, reduction="none").sum(2)
    return (divergence + (weight * distances).sum()) / weight.sum().clamp(min=1)
