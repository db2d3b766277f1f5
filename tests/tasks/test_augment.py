import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import adjust_contrast, affine, hflip

from ranksearch.errors import ConfigError
from ranksearch.tasks.augment import Affine, Contrast, CropFlip, Raw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def views_of(image, padding):
    """Every view that CropFlip may give of one image."""
    padded = torch.nn.functional.pad(image[None], [padding] * 4, mode="replicate")[0]
    _, height, width = image.shape
    shifts = range(2 * padding + 1)
    crops = [padded[:, y : y + height, x : x + width] for y in shifts for x in shifts]
    return torch.stack([*crops, *map(hflip, crops)])


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_each_image_becomes_one_of_its_own_crops(padding, flip):
    images = torch.rand(64, 3, 6, 5, generator=generator())
    augmented = CropFlip(padding=padding, flip=flip)(images, generator(1))
    seen = set()
    for image, view in zip(images, augmented, strict=True):
        same = (views_of(image, padding) == view).all((1, 2, 3)).nonzero()
        assert len(same)
        seen.add(int(same[0]))
    possible = (2 * padding + 1) ** 2 * (1 + flip)
    assert max(seen) < possible
    assert len(seen) > 0.7 * min(possible, 64 / 2)


@pytest.mark.parametrize(
    "augment",
    [CropFlip(padding=2, flip=True), Affine(degrees=20, scale=0.2, shear=0.1, shift=0.1, noise=0.1)],
)
def test_the_generator_decides(augment):
    images = torch.rand(8, 1, 8, 8, generator=generator())
    first, again, other = (augment(images, generator(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == images.shape


def still(**changes):
    return Affine(**{"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "noise": 0.0} | changes)


def test_an_affine_view_without_bounds_is_the_image():
    images = torch.rand(4, 1, 8, 8, generator=generator())
    torch.testing.assert_close(still()(images, generator()), images)


def test_noise_has_the_deviation_asked_for():
    noise = still(noise=0.3)(torch.zeros(16, 1, 64, 64), generator())
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(noise.mean().item()) < 0.01


def test_a_rotation_is_torchvisions_rotation():
    """The view is one of torchvision's rotations by an angle within the bound, to interpolation."""
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4, generator=generator()), size=32, mode="bicubic")
    view = still(degrees=30)(image, generator(3))
    tried = [angle / 4 for angle in range(-160, 161)]
    errors = [
        (affine(image, angle, [0, 0], 1.0, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR) - view)
        .square()
        .mean()
        .item()
        for angle in tried
    ]
    best = min(range(len(tried)), key=errors.__getitem__)
    assert errors[best] < 1e-4
    assert 1 < abs(tried[best]) <= 30.25


def test_what_lies_outside_is_background():
    images = torch.full((64, 1, 16, 16), 5.0)
    view = still(shift=0.5, background=(-2.0,))(images, generator())
    assert view.min().item() == pytest.approx(-2)
    assert view.max().item() == pytest.approx(5)
    assert math.isclose(view[:, :, 8, 8].mean().item(), 5, rel_tol=1e-4)


def test_a_raw_view_sees_the_images_that_were_normalised():
    """Crops of what was stored, normalised by where a pixel is now and not by where it was."""
    stored = torch.rand(16, 3, 6, 6, generator=generator(), dtype=torch.float64)
    mean, std = torch.rand(2, 3, 6, 6, generator=generator(5), dtype=torch.float64) + 0.5
    view = CropFlip(padding=2, flip=True)
    expected = (view(stored, generator(1)) - mean) / std
    raw = Raw(view=view, mean=mean, std=std)((stored - mean) / std, generator(1))
    torch.testing.assert_close(raw, expected)
    assert not torch.allclose(raw, view((stored - mean) / std, generator(1)))


def test_contrast_is_torchvision_s_of_each_channel_and_leaves_its_mean():
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    view = Contrast(low=0.75, high=1.25)
    seen = view(images, torch.Generator().manual_seed(1))
    factors = 0.75 + 0.5 * torch.rand(64, generator=torch.Generator().manual_seed(1))
    for image, before, factor in zip(seen, images, factors, strict=True):
        for channel, old in zip(image, before, strict=True):
            blended = adjust_contrast((old[None] * 0.4 + 0.3), float(factor))  # far from 0 and 1, where it would clip
            torch.testing.assert_close(channel[None] * 0.4 + 0.3, blended)
    assert 0.75 < factors.min() < 0.8 < 1.2 < factors.max() < 1.25


def test_contrast_does_not_care_whether_channels_were_normalised_before():
    images = torch.rand(5, 3, 6, 6)
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    after = (Contrast()(images, torch.Generator().manual_seed(2)) - mean) / std
    torch.testing.assert_close(Contrast()((images - mean) / std, torch.Generator().manual_seed(2)), after)


def test_contrast_refuses_what_is_no_batch_of_images():
    with pytest.raises(ConfigError, match="no images"):
        Contrast()(torch.zeros(3, 4), torch.Generator())
    with pytest.raises(ConfigError, match="no images"):
        Contrast()({"ids": torch.zeros(3, 4)}, torch.Generator())
