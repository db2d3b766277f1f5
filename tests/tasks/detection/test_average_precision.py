"""Average precision beside the textbook's loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from ranksearch.evaluate import evaluate
from ranksearch.tasks.detection.average_precision import AveragePrecision, area_under, detect
from ranksearch.tasks.detection.boxes import encode
from ranksearch.tasks.detection.loss import match
from ranksearch.tasks.detection.ssd import prior_boxes
from ranksearch.tasks.split import ArraySplit
from tests.tasks.detection.test_loss import example

PRIORS = prior_boxes(96)


def voc(scores: np.ndarray, is_true: np.ndarray, num_objects: int) -> float:
    """The development kit's VOCap: precision made monotone, summed over the steps of recall."""
    hits = is_true[np.argsort(-scores, kind="stable")]
    recall = np.concatenate([[0], np.cumsum(hits) / num_objects, [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())


def naive(scores_NK, boxes_NK4, is_kept_NK, objects_NM4) -> float:
    found = sorted(
        ((s.item(), n, k) for n, row in enumerate(scores_NK) for k, s in enumerate(row) if is_kept_NK[n, k]),
        key=lambda entry: -entry[0],
    )
    objects = [o[(o[:, 2:] > o[:, :2]).all(1)] for o in objects_NM4]
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, image, candidate in found:
        overlap = box_iou(boxes_NK4[image, candidate][None], objects[image])[0]
        best = int(overlap.argmax())
        is_hit = overlap[best] >= 0.5 and (image, best) not in taken
        taken |= {(image, best)} if is_hit else set()
        hits.append(bool(is_hit))
    return voc(np.array([entry[0] for entry in found]), np.array(hits), sum(map(len, objects)))


def noisy(seed: int, noise: float) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What a net gives that is mostly right."""
    (logits, offsets), objects = example(seed, num=6)
    is_positive, boxes = match(PRIORS, objects)
    sure = torch.stack([~is_positive, is_positive], 2) * 4.0
    return (sure + noise * logits, encode(boxes.clamp(min=1e-3), PRIORS).nan_to_num() + noise * offsets), objects


@pytest.mark.parametrize("noise", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_loops_give(seed, noise):
    outputs, objects = noisy(seed, noise)
    expected = naive(*detect(*outputs, PRIORS), objects)
    assert AveragePrecision(PRIORS)(outputs, objects).item() == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(0, 5))
def test_the_area_is_the_development_kits(found, missed):
    scores, is_true = (np.array(column) for column in zip(*found, strict=True))
    num_objects = max(1, int(is_true.sum()) + missed)
    ours = area_under(torch.tensor(scores), torch.tensor(is_true), num_objects).item()
    assert ours == pytest.approx(voc(scores, is_true, num_objects))


def test_a_perfect_net_scores_one_and_a_blind_one_nothing():
    outputs, objects = noisy(1, 0.0)
    metric = AveragePrecision(PRIORS)
    assert metric(outputs, objects).item() == 1
    logits, offsets = outputs
    assert metric((logits * 0 + torch.tensor([9.0, 0.0]), offsets), objects).item() == 0
    assert metric(outputs, objects * 0).isnan()


def test_finding_an_object_twice_counts_once():
    """Two overlapping detections too far apart for suppression: the less certain one is false."""
    boxes = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.0, 0.15, 0.4, 0.55]]])
    objects = torch.tensor([[[0.0, 0.1, 0.4, 0.5]]])
    scores = torch.tensor([[3.0, 1.0]])
    outputs = (torch.stack([-scores, scores], 2), encode(boxes, boxes[0]))
    assert AveragePrecision(boxes[0])(outputs, objects).item() == 1
    assert AveragePrecision(boxes[0])(outputs, torch.cat([objects, torch.tensor([[[0.6, 0.6, 0.9, 0.9]]])], 1)) == 0.5


def test_detections_that_are_kept_do_not_overlap_and_each_dropped_one_overlaps_a_better_one():
    scores, boxes, is_kept = detect(*noisy(2, 3.0)[0], PRIORS)
    assert (scores.diff(dim=1) <= 0).all()
    for image in range(len(boxes)):
        overlap = box_iou(boxes[image], boxes[image]).triu(1)
        kept = is_kept[image]
        assert (overlap[kept][:, kept] <= 0.45).all()
        dropped = ~kept & (scores[image] > 0.01)
        assert (overlap[kept][:, dropped] > 0.45).any(0).all()
        assert not kept[scores[image] <= 0.01].any()


def test_it_is_a_metric_of_all_examples_with_an_interval():
    outputs, objects = noisy(4, 1.5)
    split = ArraySplit(torch.arange(len(objects)), objects)

    class Recited(torch.nn.Module):
        def forward(self, index):
            return outputs[0][index], outputs[1][index]

    score = evaluate(Recited(), split, AveragePrecision(PRIORS), batch_size=4)
    assert score.value == pytest.approx(AveragePrecision(PRIORS)(outputs, objects).item())
    assert score.low < score.value < score.high
