"""The pieces of a dense block in which memory, not arithmetic, is what takes time.

Each exists twice: in torch's own words, and in C++ (dense_pieces.cpp), compiled on first use and kept, which goes
through the maps in tiles that stay in the processor's cache. Both compute the same.

Shapes: maps [P, C] of P pixels (N images of H x W) and C channels, perhaps a prefix of wider rows; vectors [C], in
float32 or, for maps in float64, in float64. `scale` and `shift` are a batch normalisation folded into one
multiplication and one addition.
"""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Protocol, cast

import torch
from torch import Tensor

from candid.models.compiling import load_pieces
from candid.models.fusing import vector_type

COMPILED = "compiled pieces"
_LOADING = Lock()


class Pieces(Protocol):
    """What a dense block is made of, beside convolutions."""

    def norm_relu(self, maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """relu(scale * maps + shift) [P, C], in rows without gaps."""
        ...

    def moments(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [C] and biased variance [C] over pixels."""
        ...

    def append(self, maps: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The `moments` of maps, which are copied to `place` [P, C]."""
        ...

    def correct(self, gradient: Tensor, maps: Tensor, mean: Tensor, constant: Tensor, factor: Tensor) -> Tensor:
        """Gives gradient - constant - factor * (maps - mean), [P, C] in rows without gaps."""
        ...

    def norm_product(self, maps: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """relu(scale * maps + shift) @ weight.T [P, K], `weight` [K, C]; with `bias` [K], relu of the sum with it."""
        ...

    def norm_sums(
        self, gradient: Tensor, maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over pixels [C] of d and of d * (maps - mean), where d is `gradient` [P, C] where relu lets it pass."""
        ...

    def norm_backward(
        self, gradient: Tensor, maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sums of `norm_sums`; adds scale * d to `gradients` [P, C]."""
        ...

    def norm_product_backward(
        self,
        gradient: Tensor,
        product: Tensor,
        scale2: Tensor,
        shift2: Tensor,
        mean2: Tensor,
        constant2: Tensor,
        factor2: Tensor,
        kept: Tensor | None,
        maps: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        weight: Tensor,
        gradients: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The way back through relu, normalisation, product, relu and normalisation: gradient of `weight`, and sums.

        `gradient` [P, K] is that of relu(scale2 * product + shift2); the gradient of `product` [P, K] is
        scale2 * d - constant2 - factor2 * (product - mean2), times `kept` [P, K] where there is dropout. Adds to
        `gradients` [P, C] and returns the sums as `norm_backward` does.
        """
        ...


class EagerPieces:
    """The pieces in torch's own words; what each computes is said in `Pieces`."""

    def norm_relu(self, maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.relu(maps * scale + shift).to(maps.dtype)

    def moments(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(maps.to(vector_type(maps.dtype)), dim=0, correction=0)
        return mean, variance

    def append(self, maps: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        place.copy_(maps)
        return self.moments(maps)

    def correct(self, gradient: Tensor, maps: Tensor, mean: Tensor, constant: Tensor, factor: Tensor) -> Tensor:
        return (gradient - constant - factor * (maps - mean)).to(maps.dtype)

    def norm_product(self, maps: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        product = self.norm_relu(maps, scale, shift) @ weight.t()
        return product if bias is None else torch.relu(product + bias).to(maps.dtype)

    def norm_sums(
        self, gradient: Tensor, maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        d = _mask(gradient, maps, scale, shift)
        return d.sum(dim=0), (d * (maps - mean)).sum(dim=0)

    def norm_backward(
        self, gradient: Tensor, maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, gradients: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients += scale * _mask(gradient, maps, scale, shift)
        return self.norm_sums(gradient, maps, scale, shift, mean)

    def norm_product_backward(
        self,
        gradient: Tensor,
        product: Tensor,
        scale2: Tensor,
        shift2: Tensor,
        mean2: Tensor,
        constant2: Tensor,
        factor2: Tensor,
        kept: Tensor | None,
        maps: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        weight: Tensor,
        gradients: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d = scale2 * _mask(gradient, product, scale2, shift2)
        of_product = self.correct(d, product, mean2, constant2, factor2).to(maps.dtype)
        if kept is not None:
            of_product *= kept
        of_weight = (of_product.t() @ self.norm_relu(maps, scale, shift)).to(scale.dtype)
        return of_weight, *self.norm_backward(of_product @ weight, maps, scale, shift, mean, gradients)


EAGER = EagerPieces()


def choose_pieces(device: torch.device) -> Pieces:
    """The compiled pieces where there is a compiler for the device, else those in torch's own words."""
    return cast(Pieces, torch.ops.candid) if device.type == "cpu" and _problem() is None else EAGER


def describe_pieces(device: torch.device) -> str:
    """Which pieces `choose_pieces` gives, and why, for people."""
    if device.type != "cpu":
        return "uncompiled pieces: compiled ones are for CPUs"
    problem = _problem()
    return COMPILED if problem is None else f"uncompiled pieces, which are slower: {problem}"


def _mask(gradient: Tensor, maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The gradient of relu's input, where that is scale * maps + shift."""
    gradient = gradient.to(scale.dtype)
    return gradient.masked_fill(maps * scale + shift <= 0, 0)


def _problem() -> str | None:
    """What is wrong with the compiled pieces, or None; threads that predict side by side ask it at the same time."""
    with _LOADING:
        return _load()


@cache
def _load() -> str | None:
    """Load the compiled pieces, once a process; what is wrong, or None."""
    problem = load_pieces("dense_pieces.cpp")
    if problem is None:
        _register_shapes()
    return problem


def _register_shapes() -> None:
    """Tell torch what the compiled pieces give, for those who only count memory."""

    def like(maps: Tensor, *_: object) -> Tensor:
        return maps.new_empty(maps.shape)

    def vectors(maps: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        vector = maps.new_empty(maps.shape[1], dtype=vector_type(maps.dtype))
        return vector, torch.empty_like(vector)

    def sums(gradient: Tensor, maps: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return vectors(maps)

    def product(maps: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return maps.new_empty(len(maps), len(weight))

    def product_backward(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, weight = tensors[8], tensors[12]
        return weight.new_empty(weight.shape, dtype=vector_type(maps.dtype)), *vectors(maps)

    shapes: dict[str, Callable[..., object]] = {
        "norm_relu": like,
        "moments": vectors,
        "append": vectors,
        "correct": like,
        "norm_product": product,
        "norm_sums": sums,
        "norm_backward": sums,
        "norm_product_backward": product_backward,
    }
    for name, shape in shapes.items():
        torch.library.register_fake(f"candid::{name}", shape)
