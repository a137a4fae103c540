"""Batch normalisation folded into convolutions, for inference.

In evaluation mode a normalisation multiplies and adds fixed numbers, channel by channel. Behind a convolution that is
the same as a convolution with other weights and another bias (Jacob et al. 2018, arXiv:1712.05877, section 3.2): one
pass over the maps less. Before one it is not, because the convolution's padding is not normalised. Dense blocks, whose
layers normalise first, have an evaluation of their own (dense_block.py).
"""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_weights

from candid.models.convolution import Conv2d
from candid.models.densenet import DenseBlock, Transition
from candid.models.fused_layers import DepthwiseConv2d


@torch.no_grad()
def fuse_norms(model: nn.Module) -> nn.Module:
    """A network that computes what `model`, in evaluation mode, does, with fewer passes over its maps.

    `model` stays as it is, and shares the tensors that are the same in both. It is given back itself where nothing
    can be folded, or where it cannot be followed because what it does depends on the values of its maps.
    """
    pairs = _find_pairs(model)
    if not pairs:
        return model
    fused = _copy_around(model, chain(*pairs))
    for conv_name, norm_name in pairs:
        conv: Any = fused.get_submodule(conv_name)
        norm: Any = fused.get_submodule(norm_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        norm.forward = nn.Identity().forward  # in the module itself: who else refers to it shall find it folded too
    return fused


def _copy_around(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A network with modules of its own where these names are, and above; all else, and all tensors, are shared."""
    paths = [name.split(".") for name in names]
    own = {".".join(path[:length]) for path in paths for length in range(len(path) + 1)}
    shared: list[object] = [module for name, module in model.named_modules() if name not in own]
    shared += [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(part): part for part in shared})


class _Tracer(fx.Tracer):
    """Follows a network into everything but torch's own layers and what looks at its input's memory."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DenseBlock | Transition | nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _find_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of a convolution and of the normalisation that alone reads its maps, each called once."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return []
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception:  # a tracer stumbles over whatever it cannot follow, in as many ways
        return []
    finally:
        tracer.root = nn.Module()  # it refers to itself, and would keep the network until garbage is collected
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    pairs: list[tuple[str, str]] = []
    for norm in calls:
        conv = norm.args[0] if norm.args else None
        if (
            isinstance(conv, fx.Node)
            and conv.op == "call_module"
            and _can_be_folded(model.get_submodule(str(conv.target)), model.get_submodule(str(norm.target)))
            and len(conv.users) == targets.count(conv.target) == targets.count(norm.target) == 1
        ):
            pairs.append((str(conv.target), str(norm.target)))
    return pairs


def _can_be_folded(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether they are a convolution and a normalisation by running statistics."""
    is_convolution = type(conv) in (nn.Conv2d, Conv2d, DepthwiseConv2d)
    return is_convolution and type(norm) is nn.BatchNorm2d and not norm.training and norm.running_mean is not None
