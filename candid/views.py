"""How a network looks at a picture when it is not trained: folded, at once or in several views whose mean counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from candid.data.preprocessing import Preprocessing
from candid.models.fusion import fuse_norms
from candid.out_of_memory import WithinMemory

ENLARGED, CROPPED = 8, 7
"""Five crops of 7 eighths of the side are cut from a picture that is so much larger: of 224 px from 256 px."""


@dataclass(frozen=True)
class Views:
    """What a network sees of each picture; the probabilities of several views are averaged.

    Both together are the ten crops of Krizhevsky et al. 2012, section 4.1.
    """

    mirror: bool = False
    """The mirror image too, in twice the time."""
    five_crops: bool = False
    """The four corners and the centre of a larger picture, in five times the time."""

    @property
    def names(self) -> list[str]:
        """What marks an evaluation with them."""
        return ["five-crops"] * self.five_crops + ["mirrored"] * self.mirror

    def text(self) -> str:
        """For people, such as " averaged over five crops and mirror images"."""
        parts = ["five crops"] * self.five_crops + ["mirror images"] * self.mirror
        return f" averaged over {' and '.join(parts)}" if parts else ""

    def enlarge(self, preprocessing: Preprocessing) -> Preprocessing:
        """How pictures are made for them."""
        side = round(preprocessing.image_size * ENLARGED / CROPPED) if self.five_crops else preprocessing.image_size
        return preprocessing.model_copy(update={"image_size": side})

    def of(self, x: Tensor) -> list[Tensor]:
        """The views [N, C, side, side] of pictures [N, C, H, H] as `enlarge` has them made."""
        views = five_crops(x, round(x.shape[-1] * CROPPED / ENLARGED)) if self.five_crops else [x]
        return views + [view.flip(3) for view in views] * self.mirror


PLAIN = Views()


def prepare(model: nn.Module, views: Views = PLAIN) -> WithinMemory:
    """A network in evaluation mode as validation, evaluation and prediction alike apply it.

    `model` stays as it is; what is prepared has the weights that it has now.
    """
    fused = fuse_norms(model)
    return WithinMemory(fused if views == PLAIN else WithViews(fused, views))


class WithViews(nn.Module):
    """A network that looks at several views of each picture."""

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, H]
        """Logarithms of the mean probabilities [N, classes], which do as logits."""
        logs = torch.stack([self.network(view).float().log_softmax(dim=1) for view in self.views.of(x)])
        return logs.logsumexp(dim=0) - math.log(len(logs))


def five_crops(x: Tensor, side: int) -> list[Tensor]:
    """The four corners and the centre [N, C, side, side] of [N, C, H, W], in torchvision's order."""
    height, width = x.shape[-2:]
    bottom, right = height - side, width - side
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [x[..., top : top + side, left : left + side] for top, left in corners]
