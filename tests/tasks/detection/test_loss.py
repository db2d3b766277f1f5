"""The loss beside one that loops over images, priors and objects."""

import math

import pytest
import torch
from torch.nn import functional
from torchvision.ops import box_iou

from ranksearch.tasks.detection.boxes import encode
from ranksearch.tasks.detection.loss import MultiboxLoss, distillation, match
from ranksearch.tasks.detection.ssd import prior_boxes

PRIORS = prior_boxes(96)


def example(seed: int, num: int = 4) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, offsets = (torch.randn(num, len(PRIORS), k, generator=generator) for k in (2, 4))
    objects = torch.zeros(num, 5, 4)
    for image in range(num):
        for index in range(image % 5 + 1):
            low = torch.rand(2, generator=generator) * 0.7
            objects[image, index] = torch.cat([low, low + 0.05 + torch.rand(2, generator=generator) * 0.25])
    return (logits, offsets), objects


def slow_match(objects: torch.Tensor) -> list[int | None]:
    """Index of the object that each prior stands for, of the (M, 4) objects of one image."""
    objects = objects[(objects[:, 2:] > objects[:, :2]).all(1)]
    overlap = box_iou(PRIORS, objects)
    found = [int(row.argmax()) if row.max() >= 0.5 else None for row in overlap]
    for index in range(len(objects)):
        found[int(overlap[:, index].argmax())] = index
    return found


def slow_loss(outputs, objects: torch.Tensor, negatives: float) -> float:
    total, num_positives = 0.0, 0
    for logits, offsets, boxes in zip(*outputs, objects, strict=True):
        losses = []
        positives = 0
        for prior, chosen in enumerate(slow_match(boxes)):
            scores = logits[prior].log_softmax(0)
            if chosen is None:
                losses.append(-scores[0].item())
                continue
            positives += 1
            wanted = encode(boxes[chosen][None], PRIORS[prior][None])[0]
            total += functional.smooth_l1_loss(offsets[prior], wanted, reduction="sum").item() - scores[1].item()
        total += sum(sorted(losses, reverse=True)[: min(len(losses), int(min(negatives * positives, 1e9)))])
        num_positives += positives
    return total / num_positives


@pytest.mark.parametrize("negatives", [1, 3, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_loops_give(seed, negatives):
    outputs, objects = example(seed)
    assert MultiboxLoss(PRIORS, negatives)(outputs, objects).item() == pytest.approx(
        slow_loss(outputs, objects, negatives), rel=1e-4
    )


def test_priors_are_matched_as_loops_match_them():
    _, objects = example(7)
    is_positive, boxes = match(PRIORS, objects)
    for image, found in enumerate(objects):
        for prior, chosen in enumerate(slow_match(found)):
            assert is_positive[image, prior] == (chosen is not None)
            if chosen is not None:
                assert boxes[image, prior].equal(found[chosen])


def test_every_object_has_a_prior_and_padding_has_none():
    _, objects = example(3, num=5)
    is_positive, boxes = match(PRIORS, objects)
    for image, found in enumerate(objects):
        matched = {tuple(box) for box in boxes[image, is_positive[image]].tolist()}
        assert matched == {tuple(box) for box in found.tolist() if any(box)}
    assert not match(PRIORS, torch.zeros(1, 5, 4))[0].any()


def test_a_perfect_net_has_no_loss_and_gradients_go_downhill():
    outputs, objects = example(5)
    is_positive, boxes = match(PRIORS, objects)
    sure = torch.stack([~is_positive, is_positive], 2) * 40.0 - 20
    wanted = encode(boxes.clamp(min=1e-3), PRIORS).nan_to_num()
    loss = MultiboxLoss(PRIORS)
    assert loss((sure, wanted), objects).item() == pytest.approx(0, abs=1e-5)
    leaves = [output.requires_grad_() for output in outputs]
    value = loss((leaves[0], leaves[1]), objects)
    value.backward()
    moved = tuple(leaf.detach() - 1e-2 * leaf.grad for leaf in leaves)  # type: ignore[operator]
    assert loss((moved[0], moved[1]), objects) < value


def test_distillation_is_least_at_the_teacher_and_ignores_offsets_where_it_sees_nothing():
    (logits, offsets), _ = example(1)
    teacher = (logits, offsets)
    assert distillation(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-5)
    nothing = (torch.stack([torch.ones(logits.shape[:2]) * 30, torch.zeros(logits.shape[:2])], 2), offsets)
    assert distillation((nothing[0], offsets + 1), nothing, 3.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation((logits, offsets + 1), teacher, 3.0) > 0.1
    assert distillation((logits.flip(2), offsets), teacher, 3.0) > 0.1


def test_distillation_is_the_sum_over_priors_for_each_object_the_teacher_sees():
    (logits, offsets), _ = example(2, num=1)
    (other_logits, other_offsets), _ = example(3, num=1)
    total = weights = 0.0
    for prior in range(len(PRIORS)):
        p, q = (x[0, prior].softmax(0) for x in (other_logits, logits))
        weight = p[1]
        distance = functional.smooth_l1_loss(offsets[0, prior], other_offsets[0, prior], reduction="sum")
        total += ((p * (p / q).log()).sum() + weight * distance).item()
        weights += weight.item()
    found = distillation((logits, offsets), (other_logits, other_offsets), 2.0)
    assert found.item() == pytest.approx(total / weights, rel=1e-4)
