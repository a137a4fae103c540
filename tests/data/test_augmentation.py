import math

import pytest
import torch
from torch import Tensor

from candid.data.augmentation import (
    Augmenter,
    cut_resized_windows,
    cut_windows,
    jitter_colors,
    mirror,
    rand_augment,
)
from candid.data.loading import cut_squares
from candid.recipe_parts import Augmentation

N, SIDE = 200, 16


def pictures(number: int = N, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def augmenter(epoch: int = 0, seed: int = 0, **settings: object) -> Augmenter:
    return Augmenter(Augmentation.model_validate(settings), seed, epoch, N)


EVERYTHING = {"crop_padding": 2, "mirror": True, "color_jitter": 0.3, "randaugment": 9}


@pytest.mark.parametrize("settings", [EVERYTHING, {"random_resized_crop": 0.3, "mirror": True}], ids=["pad", "resized"])
def test_an_example_is_varied_alike_in_any_batch(settings: dict[str, object]):
    images, indices = pictures(), torch.randperm(N, generator=torch.Generator().manual_seed(1))[:24]
    one = augmenter(**settings)
    together = one.vary(cut_squares(images[indices], indices, one), indices)
    for row, index in enumerate(indices):
        other = augmenter(**settings)
        alone = other.vary(cut_squares(images[index][None], index.view(1), other), index.view(1))
        assert torch.equal(alone[0], together[row])


def test_epochs_and_seeds_draw_differently():
    indices = torch.arange(N)
    first, other_epoch, other_seed = augmenter(), augmenter(epoch=1), augmenter(seed=1)
    assert not torch.equal(first.draw("mirror", indices), other_epoch.draw("mirror", indices))
    assert not torch.equal(first.draw("mirror", indices), other_seed.draw("mirror", indices))
    assert not torch.equal(first.draw("mirror", indices), first.draw("top", indices))


def test_what_is_off_changes_nothing():
    images, indices = pictures(), torch.arange(N)
    neutral = augmenter()
    assert torch.equal(neutral.vary(cut_squares(images, indices, neutral), indices), images)
    inputs = images.float()
    assert neutral.erase(inputs, indices) is inputs
    assert not neutral.mixes


def test_windows_are_cut_where_they_should_be():
    padded = pictures(5, channels=3).permute(0, 2, 3, 1).contiguous()
    indices, top, left = torch.tensor([4, 0, 0]), torch.tensor([0, 3, 6]), torch.tensor([6, 0, 2])
    windows = cut_windows(padded, indices, top, left, side=10)
    for row in range(3):
        y, x = int(top[row]), int(left[row])
        expected = padded[indices[row], y : y + 10, x : x + 10].permute(2, 0, 1)
        assert torch.equal(windows[row], expected)


def test_every_offset_of_a_padded_crop_is_equally_likely():
    many = Augmenter(Augmentation(crop_padding=2), 0, 0, 50_000)
    top, left = many.crop_offsets(torch.arange(50_000))
    counts = torch.bincount(top * 5 + left, minlength=25)
    assert counts.min() > 2000 - 5 * math.sqrt(2000)
    assert counts.max() < 2000 + 5 * math.sqrt(2000)


def test_mirroring_in_turns_shows_each_example_both_ways_in_two_epochs():
    indices = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    turns = [augmenter(epoch, mirror=True, mirror_alternates=True).mirrored(indices) for epoch in range(4)]
    assert torch.equal(turns[0], augmenter(0, mirror=True).mirrored(indices))
    assert turns[0].any()
    assert not turns[0].all()
    assert torch.equal(turns[1], ~turns[0])
    assert torch.equal(turns[2], turns[0])
    assert torch.equal(turns[3], turns[1])


def test_half_of_the_examples_are_mirrored():
    chosen = Augmenter(Augmentation(mirror=True), 0, 0, 50_000).draw("mirror", torch.arange(50_000)) < 0.5
    assert abs(chosen.float().mean() - 0.5) < 0.01
    images = pictures(4)
    mirrored = mirror(images, torch.tensor([True, False, True, False]))
    assert torch.equal(mirrored[0], images[0].flip(2))
    assert torch.equal(mirrored[1], images[1])


def test_resized_windows_have_the_area_and_shape_they_should():
    many = Augmenter(Augmentation(random_resized_crop=0.3), 0, 0, 20_000)
    top, left, height, width = many.resized_crop_windows(torch.arange(20_000)).unbind(1)
    assert (height * width).min() >= 0.3 * 0.99
    assert abs((height * width).mean() - 0.63) < 0.02  # uniform in [0.3, 1], a little less where clipped
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    assert 0.7 < (width / height).min() < 0.8 < 1.25 < (width / height).max() < 1.4


def test_the_whole_window_is_the_picture_itself():
    images = pictures(3)
    assert torch.equal(cut_resized_windows(images, torch.tensor([[0.0, 0, 1, 1]]).expand(3, 4)), images)


def test_neutral_color_factors_change_nothing_and_zero_brightness_is_black():
    images, one = pictures(3), torch.ones(3)
    assert torch.equal(jitter_colors(images, one, one, one), images)
    assert jitter_colors(images, torch.zeros(3), one, one).max() == 0
    grey = jitter_colors(images, one, one, torch.zeros(3))
    assert (grey[:, 0].int() - grey[:, 1].int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_applies_every_operation_to_its_own_rows(channels: int):
    images = pictures(28, channels)
    operation = torch.arange(28) / 28
    changed = rand_augment(images, operation, torch.arange(28) % 2 == 0, magnitude=15)
    assert changed.shape == images.shape
    assert torch.equal(changed[:2], images[:2])  # the first of the fourteen is the identity
    assert sum(not torch.equal(a, b) for a, b in zip(changed[2:], images[2:], strict=True)) >= 18
    alone = rand_augment(images[9:10], operation[9:10], torch.tensor([False]), magnitude=15)
    assert torch.equal(alone, changed[9:10])


def test_cutout_blanks_one_square():
    inputs = torch.ones(N, 3, SIDE, SIDE)
    blanked = (augmenter(cutout=6).erase(inputs, torch.arange(N)) == 0)[:, 0]
    sizes = blanked.flatten(1).sum(1)
    assert sizes.max() == 36
    assert sizes.min() >= 9  # centred in a corner, a quarter is left
    assert len({tuple(blank.nonzero()[0].tolist()) for blank in blanked if blank.any()}) > 50


def test_mixup_blends_inputs_and_targets_alike():
    inputs = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    targets = torch.eye(8)
    mixed, mixed_targets = augmenter(mixup=1.0).mix(inputs, targets, torch.arange(8))
    assert mixed.shape == (7, 1, 4, 4)
    assert torch.allclose(mixed_targets.sum(1), torch.ones(7))
    for row in range(7):
        share = float(mixed_targets[row, row])
        assert mixed_targets[row, row + 1] == pytest.approx(1 - share, abs=1e-6)
        assert mixed[row, 0, 0, 0] == pytest.approx(row * share + (row + 1) * (1 - share), abs=1e-5)


def test_cutmix_targets_follow_the_visible_area():
    inputs = torch.zeros(50, 1, SIDE, SIDE)
    inputs[1::2] = 1
    targets = torch.eye(50)
    mixed, mixed_targets = augmenter(cutmix=1.0).mix(inputs, targets, torch.arange(50))
    for row in range(49):
        own = 1 - mixed[row].mean() if row % 2 == 0 else mixed[row].mean()
        assert mixed_targets[row, row] == pytest.approx(float(own), abs=1e-6)


def test_mixup_and_cutmix_share_the_examples():
    both = augmenter(mixup=1.0, cutmix=1.0)
    inputs = torch.rand(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mixed, _ = both.mix(inputs, torch.eye(N), torch.arange(N))
    copied = ((mixed == inputs[:-1]) | (mixed == inputs[1:])).flatten(1).all(1).float().mean()
    assert 0.4 < copied < 0.6
