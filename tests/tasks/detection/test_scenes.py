import pytest
import torch
from torchvision.ops import box_iou

from ranksearch.tasks.detection.scenes import CONTRASTS, MOST_OBJECTS, MOST_OVERLAP, SIDES, Scenes, ink_of

PICTURES = [torch.ones(7, 4), torch.ones(4, 6)]


@pytest.fixture(scope="module")
def scenes():
    return Scenes(PICTURES, 64, 120, seed=1)


@pytest.fixture(scope="module")
def drawn(scenes):
    return scenes.batch(range(len(scenes)))


def test_a_scene_is_decided_by_its_index_and_the_seed(scenes, drawn):
    images, boxes = scenes.batch([5, 2, 5])
    assert images.equal(drawn[0][[5, 2, 5]])
    assert boxes.equal(drawn[1][[5, 2, 5]])
    kept = scenes.drawn().batch([7])
    assert all(mine.equal(theirs[[7]]) for mine, theirs in zip(kept, drawn, strict=True))
    other = Scenes(PICTURES, 64, 9, seed=2).batch([0])
    assert not other[0].equal(drawn[0][:1])
    assert not drawn[0][0].equal(drawn[0][1])


def test_a_scene_has_one_to_five_objects_of_the_sizes_promised_padded_to_five(drawn):
    images, boxes = drawn
    assert (images.shape, boxes.shape) == ((120, 3, 64, 64), (120, MOST_OBJECTS, 4))
    assert images.abs().max() <= 1
    assert images.mean().abs() < 0.5
    sides = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    counts = (sides > 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3, 4, 5}
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    pixel = 1 / 64
    assert (sides[sides > 0] >= SIDES[0] - pixel).all()
    assert (sides[sides > 0] <= SIDES[1] + pixel).all()


def test_objects_keep_clear_of_each_other(drawn):
    for boxes in drawn[1]:
        real = boxes[boxes[:, 2] > 0]
        assert (box_iou(real, real).triu(1) <= MOST_OVERLAP + 1e-6).all()


def test_a_box_is_where_the_object_is():
    """Two scenes of one seed that differ by their object's picture alone differ in its box and nowhere else."""
    solid, hollow = torch.ones(6, 6), torch.ones(6, 6)
    hollow[2:4, 2:4] = 0
    edge = torch.ones(6, 6) - torch.eye(6)[:1].T @ torch.ones(1, 6) * 0.5  # the first row fainter
    for index in range(30):
        (image, boxes), *others = (Scenes([p], 64, 30, seed=3).batch([index]) for p in (solid, hollow, edge))
        if boxes[0, 1:].any():  # the second one's colour depends on the first
            continue
        left, top, right, bottom = (boxes[0, 0] * 64).round().int().tolist()
        for (other, _), is_whole_width in zip(others, (False, True), strict=True):
            columns, rows = (image != other).any(1)[0].nonzero().T.flip(0)
            assert left <= columns.min() <= columns.max() < right
            assert top <= rows.min() <= rows.max() < bottom
            if is_whole_width:
                assert (columns.min(), columns.max() + 1, rows.min()) == (left, right, top)


def test_objects_stand_out(drawn):
    """Inside a box the image is lighter than outside of all boxes, by about the contrast."""
    images, boxes = drawn
    differences = []
    for image, found in zip(images, boxes, strict=True):
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for left, top, right, bottom in (found * 64).round().int().tolist():
            inside[top:bottom, left:right] = True
        differences.append((image[:, inside].mean() - image[:, ~inside].mean()).item() / 2)  # ±1 → 0…1
    assert sum(differences) / len(differences) > CONTRASTS[0] / 2


def test_ink_is_cut_out_and_brightened():
    picture = torch.zeros(8, 8)
    picture[2:5, 3:7] = 0.5
    picture[0, 0] = 0.1  # a speck
    assert ink_of(picture).equal(torch.ones(3, 4))
