"""Decoded picture to model input: a value that travels with the checkpoint.

Training's evaluation, `candid evaluate` and `candid predict` all come through `Preprocessing`, and so see the
same numbers for the same picture.
"""

from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import interpolate, pad

from candid.errors import InputError, did_you_mean

Fit = Literal["crop", "pad", "squash"]
MAX_ASPECT = 8
"""How many times longer than wide a picture is at most while it is resized."""


class Preprocessing(BaseModel):
    """How a decoded picture becomes what the network sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int
    """Side in px."""
    channels: Literal[1, 3]
    fit: Fit
    mean: tuple[float, ...]
    """Of each channel, for pixel values in [0, 1]."""
    std: tuple[float, ...]

    def with_fit(self, fit: str) -> "Preprocessing":
        """The same for pictures that are made square in this way: crop, pad or squash."""
        if fit not in get_args(Fit):
            advice = did_you_mean(fit, get_args(Fit), "The run's own is what its accuracy was measured with.")
            raise InputError(f"--fit is {fit!r}; it must be crop, pad or squash. {advice}")
        return self.model_copy(update={"fit": fit})

    def make_square(self, pixels: Tensor) -> Tensor:
        """uint8 [..., C, image_size, image_size] of pictures uint8 [..., C, H, W].

        Resizing is bilinear with antialiasing. `crop` keeps the centre, `pad` adds black, `squash` distorts.
        Pictures that have the size already are returned unchanged.
        """
        side, (height, width) = self.image_size, pixels.shape[-2:]
        if (height, width) == (side, side):
            return pixels
        if self.fit == "squash" or height == width:
            return _resize(pixels, side, side)
        shrinkage = self.shrinkage(height, width)
        wanted = _cut_ends(pixels) if self.fit == "crop" else pixels
        resized = _resize(wanted, *(max(1, round(length / shrinkage)) for length in wanted.shape[-2:]))
        return _crop_centre(resized, side)

    def shrinkage(self, height: float, width: float) -> float:
        """How many times smaller `make_square` makes a picture of this size in px; where it distorts, the less."""
        return (max if self.fit == "pad" else min)(height, width) / self.image_size

    def normalise(self, pixels: Tensor) -> Tensor:
        """float32 [N, C, H, W] in channels-last memory of uint8 [N, C, H, W]: mean removed, divided by std."""
        std = torch.tensor(self.std, device=pixels.device)
        mean = torch.tensor(self.mean, device=pixels.device)
        by_row = pixels.permute(0, 2, 3, 1).flatten(2).float()  # [N, H, W * C]: long rows vectorise well
        width = pixels.shape[-1]
        by_row.mul_((1 / (255 * std)).repeat(width)).sub_((mean / std).repeat(width))
        return by_row.unflatten(2, (width, -1)).permute(0, 3, 1, 2)

    def as_pixels(self, inputs: Tensor) -> Tensor:
        """uint8 [N, C, H, W] on the CPU of what a network sees: `normalise` undone."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((inputs.detach().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Model input [N, C, image_size, image_size] of pictures uint8 [N, C, H, W]."""
        return self.normalise(self.make_square(pixels))


def with_channels(images: Tensor, channels: Literal[1, 3]) -> Tensor:
    """Images [N, C, H, W] in grey or in RGB; grey by ITU-R 601, as the decoder does it."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """What torchvision's `resize` gives, whose import takes as long as that of torch; a test compares them."""
    batch = pixels.reshape(-1, *pixels.shape[-3:])
    if pixels.device.type == "cpu":
        resized = interpolate(batch, (height, width), mode="bilinear", antialias=True)
    else:  # which resize no integers
        resized = interpolate(batch.float(), (height, width), mode="bilinear", antialias=True).round_().to(torch.uint8)
    return resized.view(*pixels.shape[:-2], height, width)


def _cut_ends(pixels: Tensor) -> Tensor:
    """The middle [..., h, w] of [..., H, W], whose long side is at most MAX_ASPECT times the short one.

    The middle square does not depend on the rest, and 65,535 x 1 px would become gigabytes on the way to 224 px.
    """
    most = MAX_ASPECT * min(pixels.shape[-2:])
    top, left = (max(0, (length - most) // 2) for length in pixels.shape[-2:])
    return pixels[..., top : top + most, left : left + most]


def _crop_centre(pixels: Tensor, side: int) -> Tensor:
    """The middle [..., side, side] of [..., H, W], with 0 around it where that is smaller."""
    missing = [max(0, side - length) for length in pixels.shape[-2:]]
    padded = pad(pixels, [margin for length in reversed(missing) for margin in (length // 2, (length + 1) // 2)])
    top, left = (round((length - side) / 2) for length in padded.shape[-2:])
    return padded[..., top : top + side, left : left + side]
