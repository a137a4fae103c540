"""Less memory for more time: keep the inputs of a network's segments, and compute the rest again when it is needed.

The backward pass needs what the forward pass computed. A recomputed segment keeps its input alone; when the backward
pass arrives, the segment is run once more from it. Dropout draws the same again, and batch normalisation takes the
same statistics of the batch but does not move its running ones a second time, so that gradients and buffers are
those of the plain network, bit by bit.

Segments are found by what the zoo's networks are made of, from the outside in:
- a block is a module with a forward of its own and with layers inside: a residual block, an inception module, a stage
  of a highway network. It is one segment;
- a `Sequential` of single layers, as in VGG, is cut behind its poolings, where maps are smallest;
- what has a linear layer is left as it is (heads, classifiers, auxiliary classifiers): it keeps little, and computing
  it again costs much. So are single layers, which keep no more than their input.

LeNet, ConvNet and the MLP are made of single layers only, and keep what they always kept.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from candid.models.fused_layers import Layers

BATCH_NORMS = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]  # the base of all of them


def recompute_segments(model: nn.Module) -> None:
    """Make `model` keep the inputs of its segments alone, wherever gradients are wanted.

    Parameters, their names and the network's class stay as they are; only the calls of some modules change.
    """
    for child in model.children():
        if any(isinstance(module, nn.Linear) for module in child.modules()):
            continue
        if _holds_blocks(child):
            recompute_segments(child)
        elif isinstance(child, nn.Sequential):
            child.forward = partial(_run_parts, [Layers(*part) for part in _cut_behind_poolings(child)])
        elif _is_block(child):
            child.forward = partial(_run, child, child.forward)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a list of blocks, or of such lists."""
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    return is_list and all(_holds_blocks(child) or _is_block(child) for child in module.children())


def _is_block(module: nn.Module) -> bool:
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    return not is_list and any(True for _ in module.children())


def _cut_behind_poolings(layers: nn.Sequential) -> Iterator[list[nn.Module]]:
    part: list[nn.Module] = []
    for layer in layers:
        part.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            yield part
            part = []
    if part:
        yield part


def _run_parts(parts: list[Layers], input: Tensor) -> Tensor:
    for part in parts:
        input = _run(part, part.forward, input)
    return input


def _run(segment: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """What the segment's own `forward` gives for `inputs`, keeping these alone for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, segment))


def _contexts(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first pass through the segment, and for the second."""
    return nullcontext(), _statistics_stay(segment)


@contextmanager
def _statistics_stay(segment: nn.Module) -> Generator[None]:
    """Let batch normalisation move copies of its running statistics, and put the true ones back behind it.

    Without any, it would save fewer tensors than the first time, which `checkpoint` refuses.
    """
    norms = [module for module in segment.modules() if isinstance(module, BATCH_NORMS) and module.training]
    statistics = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in statistics:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in statistics:
            setattr(norm, name, buffer)
