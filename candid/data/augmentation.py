"""Training-only randomness on whole batches; what happens to an example depends on (seed, epoch, index) alone.

Notation: N images, C channels, H W pixels; pictures are uint8 [N, C, H, W] in channels-last memory.
A picture that is streamed from disk comes through the same functions as a batch of one.
"""

import importlib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from candid.randomness import beta, uniform
from candid.recipe_parts import Augmentation

NUM_RANDAUGMENT_OPERATIONS = 2

Operation = Callable[[Tensor, float], Tensor]
"""From pictures and a sign, 1 or -1, to pictures."""


class Augmenter:
    """The draws of one epoch for every training example, and what is done with them.

    `indices` [N] names the training example in each row of the batch.
    """

    def __init__(self, settings: Augmentation, seed: int, epoch: int, num_examples: int) -> None:
        """Prepare the draws of `epoch` for a training split of `num_examples`."""
        self.settings = settings
        self._seed, self._epoch = seed, epoch
        self._num_examples = num_examples
        self._drawn: dict[tuple[str, int], Tensor] = {}
        if settings.randaugment:  # now: in a process forked while a thread imports it, it would never come
            importlib.import_module("torchvision.transforms.v2")

    def draw(self, purpose: str, indices: Tensor, epoch: int | None = None) -> Tensor:
        """Each example's draw in [0, 1) for `purpose`, [N]; that of another epoch if one is given."""
        key = purpose, self._epoch if epoch is None else epoch
        if key not in self._drawn:
            self._drawn[key] = uniform(self._num_examples, self._seed, "augmentation", key[1], purpose)
        return self._drawn[key][indices]

    def draw_beta(self, alpha: float, purpose: str, indices: Tensor) -> Tensor:
        """Each example's draw from Beta(alpha, alpha) for `purpose`, [N]."""
        key = purpose, self._epoch
        if key not in self._drawn:
            self._drawn[key] = beta(self._num_examples, alpha, self._seed, "augmentation", self._epoch, purpose)
        return self._drawn[key][indices]

    def crop_offsets(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Top and left in px, [N] each, of a window in a picture padded by `crop_padding` on every side."""
        places = 2 * self.settings.crop_padding + 1
        top, left = self.draw("top", indices), self.draw("left", indices)
        return (top * places).long(), (left * places).long()

    def resized_crop_windows(self, indices: Tensor) -> Tensor:
        """(top, left, height, width) of each window as shares of the picture's sides, [N, 4].

        Szegedy et al. 2015, section 6: area uniform in [random_resized_crop, 1], aspect ratio log-uniform
        in [3/4, 4/3]. A window longer than the picture is shortened to it.
        """
        smallest = self.settings.random_resized_crop
        area = smallest + (1 - smallest) * self.draw("area", indices)
        ratio = torch.exp((2 * self.draw("ratio", indices) - 1) * math.log(4 / 3))
        height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
        top, left = (1 - height) * self.draw("top", indices), (1 - width) * self.draw("left", indices)
        return torch.stack([top, left, height, width], dim=1)

    def mirrored(self, indices: Tensor) -> Tensor:
        """Whether each example comes with left and right swapped, bool [N]."""
        if not self.settings.mirror_alternates:
            return self.draw("mirror", indices) < 0.5
        return (self.draw("mirror", indices, epoch=0) < 0.5) ^ (self._epoch % 2 == 1)

    def vary(self, pictures: Tensor, indices: Tensor) -> Tensor:
        """Mirrored, jittered and RandAugmented pictures, uint8 [N, C, H, W]."""
        if self.settings.mirror:
            pictures = mirror(pictures, self.mirrored(indices))
        if self.settings.color_jitter:
            draws = [self.draw(name, indices) for name in ("brightness", "contrast", "saturation")]
            factors = 1 + self.settings.color_jitter * (2 * torch.stack(draws) - 1)
            pictures = jitter_colors(pictures, *factors)
        if self.settings.randaugment:
            for turn in range(NUM_RANDAUGMENT_OPERATIONS):
                operation = self.draw(f"operation {turn}", indices)
                negative = self.draw(f"sign {turn}", indices) < 0.5
                pictures = rand_augment(pictures, operation, negative, self.settings.randaugment)
        return pictures

    def erase(self, inputs: Tensor, indices: Tensor) -> Tensor:
        """Inputs, float [N, C, H, W], with cutout's square blanked: 0 is the mean of the training pictures."""
        if self.settings.cutout:
            row, column = self.draw("cutout row", indices), self.draw("cutout column", indices)
            height, width = inputs.shape[-2:]
            window = _window((row * height).long(), (column * width).long(), self.settings.cutout, inputs)
            inputs = inputs.masked_fill(window, 0.0)
        return inputs

    @property
    def mixes(self) -> bool:
        """Whether each example needs a partner."""
        return self.settings.mixup > 0 or self.settings.cutmix > 0

    def mix(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Each example but the last with the one behind it as its partner: inputs [N - 1, ...], targets alike.

        `inputs` float [N, C, H, W]; `targets` [N, classes], rows sum to 1; `indices` of all N. The partner is
        the next example in the epoch's order, so that batch boundaries do not matter.
        """
        inputs, partners = inputs[:-1], inputs[1:]
        targets, partner_targets = targets[:-1], targets[1:]
        indices = indices[:-1]
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        takes_cutmix = self.draw("mixup or cutmix", indices) < (0.5 if mixup and cutmix else float(cutmix > 0))
        own_share = torch.ones(len(indices))
        if mixup:
            share = self.draw_beta(mixup, "mixup", indices)
            own_share = torch.where(takes_cutmix, own_share, share)
            weight = own_share.to(inputs.device).view(-1, 1, 1, 1)
            inputs = inputs * weight + partners * (1 - weight)
        if cutmix:
            window = self._cutmix_window(inputs, indices) & takes_cutmix.to(inputs.device).view(-1, 1, 1, 1)
            inputs = torch.where(window, partners, inputs)
            visible = 1 - window.flatten(1).float().mean(dim=1).cpu()
            own_share = torch.where(takes_cutmix, visible, own_share)
        weight = own_share.to(targets.device).view(-1, 1)
        return inputs, targets * weight + partner_targets * (1 - weight)

    def _cutmix_window(self, inputs: Tensor, indices: Tensor) -> Tensor:
        """Where the partner shows through, bool [N, 1, H, W]: Yun et al. 2019, equation 2."""
        height, width = inputs.shape[-2:]
        side = (1 - self.draw_beta(self.settings.cutmix, "cutmix", indices)).sqrt()
        row = (self.draw("cutmix row", indices) * height).long()
        column = (self.draw("cutmix column", indices) * width).long()
        return _window(row, column, (side * height).long(), inputs)


def cut_squares(pictures: Tensor, indices: Tensor, augmenter: Augmenter) -> Tensor:
    """The augmenter's cut of each picture uint8 [N, C, side, side], of the same shape."""
    if augmenter.settings.random_resized_crop:
        return cut_resized_windows(pictures, augmenter.resized_crop_windows(indices))
    if augmenter.settings.crop_padding:
        margin = augmenter.settings.crop_padding
        padded = pad(pictures.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin)).contiguous()
        top, left = (offset.to(pictures.device) for offset in augmenter.crop_offsets(indices))
        rows = torch.arange(len(pictures), device=pictures.device)
        return cut_windows(padded, rows, top, left, side=pictures.shape[-1])
    return pictures


def cut_windows(padded: Tensor, indices: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Windows of side px, uint8 [N, C, side, side]: one of each picture in `indices`, its corner at top, left.

    `padded` [pictures, H, W, C], contiguous. A row of a window is a run of side * C bytes wherever it begins,
    so all rows are fetched by one look-up in an overlapping view; this is several times faster than
    an index for every pixel.
    """
    _, height, width, channels = padded.shape
    flat = padded.view(-1)
    num_starts = flat.numel() // channels - side + 1
    runs = flat.as_strided((num_starts, side * channels), (channels, 1))
    first_row = (indices * height + top) * width + left
    starts = first_row[:, None] + torch.arange(side, device=padded.device) * width
    windows = runs[starts.flatten()]
    return windows.view(len(indices), side, side, channels).permute(0, 3, 1, 2)


def cut_resized_windows(pictures: Tensor, windows: Tensor) -> Tensor:
    """The windows [N, 4] of pictures of one size, each enlarged to that size (bilinear), uint8."""
    top, left, height, width = windows.to(pictures.device).unbind(dim=1)
    zero = torch.zeros_like(top)
    matrix = torch.stack(  # output coordinates in [-1, 1] to those of the picture
        [width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1
    ).view(-1, 2, 3)
    grid = affine_grid(matrix, list(pictures.shape), align_corners=False)
    sampled = grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8)


def mirror(pictures: Tensor, chosen: Tensor) -> Tensor:
    """Pictures with left and right swapped where `chosen` [N] is true."""
    return torch.where(chosen.to(pictures.device).view(-1, 1, 1, 1), pictures.flip(3), pictures)


def jitter_colors(pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Pictures with brightness, contrast and, where there is colour, saturation scaled by factors [N] each."""
    values = pictures.float()
    brightness, contrast, saturation = (
        factor.to(pictures.device).view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation)
    )
    values = (values * brightness).clamp(0, 255)
    mean = _luminance(values).mean(dim=(1, 2, 3), keepdim=True)
    values = (mean + (values - mean) * contrast).clamp(0, 255)
    grey = _luminance(values)
    values = (grey + (values - grey) * saturation).clamp(0, 255)
    return values.round().to(torch.uint8)


def rand_augment(pictures: Tensor, operation: Tensor, negative: Tensor, magnitude: int) -> Tensor:
    """Pictures after one of RandAugment's operations each (Cubuk et al. 2020, section 3.1).

    `operation` [N] in [0, 1) chooses it, `negative` [N] its direction where it has one; magnitude in [0, 30].
    """
    operations = _operations(magnitude / 30, side=pictures.shape[-1])
    choice = (operation * len(operations)).long()
    result = pictures.clone()
    for number, operate in enumerate(operations):
        for sign, has_sign in ((1.0, ~negative), (-1.0, negative)):
            rows = torch.nonzero((choice == number) & has_sign).flatten().to(pictures.device)
            if len(rows):
                result[rows] = operate(pictures[rows].contiguous(), sign)
    return result


def _operations(strength: float, side: int) -> list[Operation]:
    """RandAugment's fourteen operations on (pictures, sign), at `strength` in [0, 1] of their ranges."""
    from torchvision.transforms.v2 import functional as transforms  # which takes as long to import as torch

    def move(angle: float = 0, x: float = 0, y: float = 0, shear_x: float = 0, shear_y: float = 0) -> Operation:
        def operate(pictures: Tensor, sign: float) -> Tensor:
            shift = [float(round(sign * x)), float(round(sign * y))]
            return transforms.affine(pictures, sign * angle, shift, 1.0, [sign * shear_x, sign * shear_y])

        return operate

    slant = math.degrees(math.atan(0.3 * strength))
    shift = 150 / 331 * side * strength
    return [
        lambda pictures, sign: pictures,
        lambda pictures, sign: transforms.autocontrast(pictures),
        lambda pictures, sign: transforms.equalize(pictures),
        move(angle=30 * strength),
        lambda pictures, sign: transforms.solarize(pictures, 255 * (1 - strength)),
        lambda pictures, sign: transforms.adjust_saturation(pictures, 1 + sign * 0.9 * strength),
        lambda pictures, sign: transforms.posterize(pictures, 8 - round(4 * strength)),
        lambda pictures, sign: transforms.adjust_contrast(pictures, 1 + sign * 0.9 * strength),
        lambda pictures, sign: transforms.adjust_brightness(pictures, 1 + sign * 0.9 * strength),
        lambda pictures, sign: transforms.adjust_sharpness(pictures, 1 + sign * 0.9 * strength),
        move(shear_x=slant),
        move(shear_y=slant),
        move(x=shift),
        move(y=shift),
    ]


def _luminance(values: Tensor) -> Tensor:
    """Grey of [N, C, H, W] by ITU-R 601, [N, 1, H, W]."""
    if values.shape[1] == 1:
        return values
    weights = torch.tensor([0.299, 0.587, 0.114], device=values.device).view(1, 3, 1, 1)
    return (values * weights).sum(dim=1, keepdim=True)


def _window(row: Tensor, column: Tensor, side: Tensor | int, inputs: Tensor) -> Tensor:
    """Squares centred at row, column [N] and clipped at the border, as bool [N, 1, H, W]."""
    row, column = row.to(inputs.device), column.to(inputs.device)
    side = torch.as_tensor(side, device=inputs.device).expand_as(row)

    def within(centre: Tensor, length: int) -> Tensor:
        start = (centre - torch.div(side, 2, rounding_mode="floor"))[:, None]
        place = torch.arange(length, device=inputs.device)
        return (place >= start) & (place < start + side[:, None])

    height, width = inputs.shape[-2:]
    return (within(row, height)[:, :, None] & within(column, width)[:, None, :])[:, None]
