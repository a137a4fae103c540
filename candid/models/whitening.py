"""A first convolution whose filters come from the pictures themselves, not from training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, unfold

from candid.models.fused_layers import shift

SMALLEST_VARIANCE = 5e-4
"""Added to the variance of every direction, so that what hardly varies is not blown up."""


class WhiteningConvolution(nn.Module):
    """Filters that turn patches into uncorrelated numbers of variance one, each with its negative, plus learned biases.

    Page 2019 ("How to train your ResNet", part 8: bag of tricks); frozen and with negatives as in Jordan 2024
    (arXiv:2404.00498, section 3.2). Until `whiten` has seen pictures the filters are random. They are a buffer:
    saved with the weights, but not learned.
    """

    filters: Tensor  # [2 * C * side**2, C, side, side]

    def __init__(self, in_channels: int, side: int = 2) -> None:
        super().__init__()
        self.out_channels = 2 * in_channels * side**2
        filters = torch.empty(self.out_channels, in_channels, side, side)
        self.register_buffer("filters", nn.init.kaiming_normal_(filters))
        self.bias = nn.Parameter(torch.zeros(self.out_channels))

    def forward(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:  # x [N, C, H, W]
        """Maps [N, 2 * C * side**2, H - side + 1, W - side + 1], through an activation if one is given."""
        if activation is None:
            return conv2d(x, self.filters, self.bias)
        return shift(conv2d(x, self.filters), self.bias, activation)

    @torch.no_grad()
    def whiten(self, pictures: Iterable[Tensor]) -> None:
        """Take the filters from the patches of batches [N, C, H, W] of what the network will see."""
        side, size = self.filters.shape[-1], self.filters[0].numel()
        products, number = torch.zeros(size, size, dtype=torch.float64, device=self.filters.device), 0
        for batch in pictures:
            patches = unfold(batch.contiguous(), side).transpose(1, 2).reshape(-1, size).double()
            products += patches.T @ patches
            number += len(patches)
        variances, directions = torch.linalg.eigh(products / number)
        white = (directions / (variances + SMALLEST_VARIANCE).sqrt()).T.reshape(-1, *self.filters.shape[1:])
        self.filters.copy_(torch.cat((white, -white)))


def whiten(network: nn.Module, pictures: Iterable[Tensor]) -> None:
    """Show pictures [N, C, H, W], as the network will see them, to its first layer, where that learns from them."""
    for module in network.modules():
        if isinstance(module, WhiteningConvolution):
            module.whiten(pictures)
