"""The published net, counted; and its prior boxes, each where the net's output for it looks."""

import pytest
import torch

from ranksearch.layers import find_layers
from ranksearch.tasks.detection.ssd import MobileNetSSD, prior_boxes


@pytest.fixture(scope="module")
def published():
    return MobileNetSSD().eval()


def test_it_holds_the_published_number_of_values(published):
    state = published.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    statistics = sum(value.numel() for name, value in state.items() if "running_" in name)
    parameters = sum(parameter.numel() for parameter in published.parameters())
    assert (parameters, statistics, len(counters)) == (6_579_096, 21_888, 27)
    assert sum(value.numel() for value in state.values()) == 6_601_011


def test_its_layers_have_the_published_names_and_shapes(published):
    found = {layer.name: str(layer.shape) for layer in find_layers(published, torch.zeros(1, 3, 300, 300))}
    assert found["extras.0.2"].startswith("256→512 3×3/2")
    assert all(found[f"extras.{i}.2"].startswith("128→256 3×3/2") for i in (1, 2, 3))
    assert found["base_net.1.3"].startswith("32→64 1×1")
    heads = [name for name in found if "_headers." in name]
    assert len(heads) == 12
    for index, channels in enumerate((512, 1024, 512, 256, 256, 256)):
        assert found[f"regression_headers.{index}"].startswith(f"{channels}→24 3×3")
        assert found[f"classification_headers.{index}"].startswith(f"{channels}→12 3×3")


@pytest.mark.parametrize(("image_size", "count"), [(300, 3000), (128, 522), (96, 312), (33, 102)])
def test_there_is_an_output_for_every_prior(image_size, count):
    priors = prior_boxes(image_size)
    logits, offsets = MobileNetSSD(0.25).eval()(torch.zeros(2, 3, image_size, image_size))
    assert (logits.shape, offsets.shape, priors.shape) == ((2, count, 2), (2, count, 4), (count, 4))


def test_priors_lie_in_the_image_and_have_the_published_shapes():
    priors = prior_boxes(300)
    assert priors.min() == 0
    assert priors.max() == 1
    widths, heights = (priors[:, 2:] - priors[:, :2]).unbind(1)
    middle = slice(6 * (9 * 19 + 9), 6 * (9 * 19 + 9) + 6)  # of the first map, 19 × 19: nothing is cut off there
    sides = [60, 60 * 1.75**0.5, 60 * 2**0.5, 60 / 2**0.5, 60 * 3**0.5, 60 / 3**0.5]  # pixels; √(60·105) = 60 √1.75
    assert (300 * widths[middle]).tolist() == pytest.approx(sides, rel=1e-4)
    assert (300 * heights[middle]).tolist() == pytest.approx(
        [sides[0], sides[1], sides[3], sides[2], sides[5], sides[4]], rel=1e-4
    )


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 1), (2, 18)])
def test_an_output_depends_on_the_image_where_its_prior_is(row, column):
    """The gradient of a first-map score with respect to the image is largest around its prior's centre."""
    torch.manual_seed(0)
    net = MobileNetSSD(0.25).eval()
    image = torch.randn(1, 3, 300, 300, requires_grad=True)
    prior = 6 * (row * 19 + column)
    net(image)[0][0, prior, 1].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1))
    places = torch.arange(300) + 0.5
    centre = torch.stack([(seen.sum(0) * places).sum(), (seen.sum(1) * places).sum()]) / seen.sum()
    expected = torch.tensor([column, row]) * 16.0 + 8
    assert (centre - expected).abs().max() < 60  # the image's border cuts what it sees


@pytest.mark.parametrize(("block", "first", "second"), [(11, True, True), (12, False, True), (13, False, True)])
def test_the_first_map_is_what_enters_the_last_halving(block, first, second):
    """Twelve blocks before it (the eleventh separable one is the last), all fourteen before the second map."""
    net, image = MobileNetSSD(0.25).eval(), torch.randn(1, 3, 96, 96)
    before = net(image)[0]
    net.base_net[block][-2].bias.data += 1
    changed = (net(image)[0] != before).any(2)[0]
    assert changed[: 6 * 36].any() == first
    assert changed[6 * 36 : 6 * 45].any() == second
