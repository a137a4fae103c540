"""Muon: steps of convolutions that are turned into orthogonal matrices, and AdamW for everything else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
NUM_ITERATIONS = 3


def is_filters(parameter: Tensor) -> bool:
    """Whether a parameter is the filters of a convolution, [D, C, h, w], which learn by Muon."""
    return parameter.ndim == 4


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for filters, AdamW for vectors and the head.

    Of a convolution [D, C, h, w], a step's direction is the matrix [D, C * h * w] of Nesterov's momentum with all
    singular values near one. Its norm is set to sqrt(D) before each step, as in the author's record runs on CIFAR-10,
    in place of weight decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change all parameters that have a gradient; the gradients of the filters are gone afterwards."""
        for group in self.param_groups:
            for parameter in filter(is_filters, group["params"]):
                if parameter.grad is not None:
                    self._step_filters(parameter, parameter.grad, group["lr"], group["betas"][0])
                    parameter.grad = None  # so that AdamW leaves it alone
        return super().step(closure)

    def _step_filters(self, filters: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        state = self.state[filters]
        if not state:
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(filters))  # AdamW wants a step when loading
        state["momentum"].lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(state["momentum"], momentum)
        filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.sub_(orthogonal(direction.flatten(1)).view_as(filters), alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """[D, E], the nearest matrix with orthogonal rows or columns, roughly: singular values within about [0.5, 1.3].

    A Newton-Schulz iteration of fifth order with the coefficients that Jordan chose for speed; products in bf16, as
    their precision does not matter here.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(NUM_ITERATIONS):
        products = x @ x.T
        x = a * x + (b * products + c * products @ products) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
