"""A network layer by layer: kernels, shapes, parameters, multiply-adds, memory, found by watching one forward pass.

The network is built on the meta device, where it takes no memory, and then sees a batch of no images on the CPU, where
torch finds every shape and has nothing to multiply. (A pass on the meta device finds the same, but makes torch load its
compiler, which takes longer than all the rest.)
"""

import gc
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from candid.models import build_model, find_variant

BYTES_PER_VALUE = 4  # fp32
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WEIGHTED = {"conv2d", "linear"}
# What a network may write out in its forward instead of calling a module: layers, and what stands between layers.
LAYERS = {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "hardtanh": "hardtanh",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "softmax": "softmax",
    "max_pool2d": "max pool",
    "avg_pool2d": "average pool",
    "adaptive_avg_pool2d": "average pool",
    "mean": "average",
    "amax": "maximum",
    "local_response_norm": "local response norm",
    "batch_norm": "batch norm",
    "conv2d": "conv",
    "linear": "linear",
}
BETWEEN_LAYERS = {
    "cat": "concatenation",
    "add": "sum",
    "iadd": "sum",
    "radd": "sum",
    "mul": "product",
    "imul": "product",
    "rmul": "product",
    "sub": "difference",
    "rsub": "difference",
    "pad": "padding",
    "reshape": "copy",
    "contiguous": "copy",
}


@dataclass(frozen=True)
class Layer:
    """What one layer, or one operation written out between layers, does to one image."""

    name: str
    """As in the state dict; of an operation between layers, the name of the block around it."""
    is_module: bool
    """False for an operation between layers."""
    kind: str
    """Such as "conv 3x3/2", the stride behind the slash."""
    output: tuple[int, ...]
    """Channels, height and width, or features."""
    parameters: int
    """0 where an earlier call of the same layer has counted them."""
    multiply_adds: int
    """Of convolutions and linear layers, without biases."""

    @property
    def activation_bytes(self) -> int:
        """Of the output in fp32."""
        return BYTES_PER_VALUE * prod(self.output)


@dataclass(frozen=True)
class Summary:
    """A network and its layers in the order in which they run."""

    name: str
    family: str
    image: tuple[int, int, int]
    """Channels, height and width."""
    num_classes: int
    layers: tuple[Layer, ...]
    parameters: int
    """All, also those of auxiliary classifiers, which have no row because only training uses them."""
    depth: int
    """Convolutions and linear layers on the longest way from the image to the logits."""
    usual_activation_bytes: int
    """Activations for forward and backward, counted as the usual summary of a network does.

    That is twice the outputs of all layers and, once more, of all blocks as the next block receives them. A layer is a
    module without modules in it, or an activation or pooling written out in a forward; a block is a module with layers
    in it that is neither the network nor a list of modules. What the next block receives from a dense layer is the
    concatenation. Autograd keeps less: a ReLU in place, for one, needs no memory of its own.
    """

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters in fp32."""
        return BYTES_PER_VALUE * self.parameters

    @property
    def multiply_adds(self) -> int:
        """Of one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Of all outputs, each counted once."""
        return sum(layer.activation_bytes for layer in self.layers)


def summarize(name: str, num_classes: int | None = None, image_size: int | None = None) -> Summary:
    """The network called `name`, by default for the data it was designed for.

    Raises:
        InputError: if there is no such network or it cannot be built like this.
    """
    variant = find_variant(name)
    num_classes = variant.num_classes if num_classes is None else num_classes
    image_size = variant.image_size if image_size is None else image_size
    image = (variant.in_channels, image_size, image_size)
    with _no_garbage_collection():
        with torch.device("meta"), _NothingDrawn():
            model = build_model(name, num_classes, variant.in_channels, image_size).eval()
        images, weights, watcher = torch.empty(0, *image), _stand_ins(model), _Watcher(model)
        with torch.no_grad(), watcher:
            logits = functional_call(model, weights, (images,))
    return Summary(
        name=name,
        family=variant.family,
        image=image,
        num_classes=num_classes,
        layers=tuple(watcher.layers),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        depth=watcher.made[id(logits)].depth,
        usual_activation_bytes=2 * BYTES_PER_VALUE * (watcher.layer_values + sum(watcher.handed_on.values())),
    )


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Keeps the collector, which makes no find, from going through all of torch at every thousand new modules."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """Tensors in the shapes of the state dict that take no memory.

    Each is one zero seen everywhere, but for the kernels of convolutions, which torch would copy: for them, memory that
    nobody touches, so that the system never provides it.
    """
    zero = torch.zeros(())
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    return {name: torch.empty(shape) if len(shape) == 4 else zero.expand(shape) for name, shape in shapes.items()}


class _NothingDrawn(TorchFunctionMode):
    """Leaves out random initialisation, which takes most of the time of building and has no effect on shapes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):  # of tensors and of torch.nn.init
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Made:
    """Where a tensor came from."""

    tensor: Tensor
    """Kept, so that no other tensor gets its id."""
    depth: int
    in_block: bool


class _Watcher(TorchFunctionMode):
    """Sees modules through hooks, and as a mode every operation, in layers and between them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.made: dict[int, _Made] = {}
        """By the tensor's id."""
        self.layer_values = 0
        """In the outputs of all layers."""
        self.handed_on: dict[int, int] = {}
        """Number of values of each tensor that one block has made and another receives, by its id."""
        self._blocks: list[str] = []
        """Those that are running, the innermost last."""
        self._in_layer = False
        self._multiply_adds = 0
        """Since the last row."""
        self._counted: set[nn.Module] = set()
        for name, module in model.named_modules():
            if module is model or isinstance(module, CONTAINERS):
                continue
            if any(module.children()):
                module.register_forward_pre_hook(partial(self._enter_block, name))
                module.register_forward_hook(self._leave_block)
            else:
                module.register_forward_pre_hook(self._enter_layer)
                module.register_forward_hook(partial(self._leave_layer, name))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        outputs = _tensors((output,))
        if outputs:
            self._record(func.__name__.strip("_"), _tensors(args), outputs)
        return output

    def _record(self, operation: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        depth = max((self.made[id(x)].depth for x in inputs if id(x) in self.made), default=0)
        if operation in WEIGHTED:
            weight = inputs[1]
            depth += 1
            self._multiply_adds += prod(_shape(outputs[0])) * prod(weight.shape[1:])
        if not self._blocks:
            self._hand_on(inputs)
        given = {id(x) for x in inputs}
        for output in outputs:
            in_block = self.made[id(output)].in_block if id(output) in self.made else bool(self._blocks)
            self.made[id(output)] = _Made(output, depth, in_block)
            is_new = id(output) not in given and not output._is_view()
            if not self._in_layer and (is_new or operation in LAYERS):
                kind = LAYERS.get(operation) or BETWEEN_LAYERS.get(operation, operation)
                self._add_row(self._blocks[-1] if self._blocks else "", kind, output, is_layer=operation in LAYERS)

    def _hand_on(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) in self.made and self.made[id(tensor)].in_block:
                self.handed_on[id(tensor)] = prod(_shape(tensor))

    def _add_row(
        self, name: str, kind: str, output: Tensor, *, is_layer: bool, module: nn.Module | None = None
    ) -> None:
        parameters = () if module is None or module in self._counted else module.parameters()
        self.layers.append(
            Layer(
                name=name,
                is_module=module is not None,
                kind=kind,
                output=_shape(output),
                parameters=sum(parameter.numel() for parameter in parameters),
                multiply_adds=self._multiply_adds,
            )
        )
        self._multiply_adds = 0
        self.layer_values += prod(_shape(output)) if is_layer else 0
        self._counted |= set() if module is None else {module}

    def _enter_layer(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._in_layer = True

    def _leave_layer(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._in_layer = False
        is_off = getattr(module, "p", None) == 0  # dropout
        if not is_off and not isinstance(module, nn.Identity | nn.Flatten):
            self._add_row(name, describe_kind(module), output, is_layer=True, module=module)

    def _enter_block(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._hand_on(_tensors(inputs))
        self._blocks.append(name)

    def _leave_block(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._blocks.pop()


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among `values` and in the lists among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Without the batch, whose size is 0; of stacked branches it is not the first dimension."""
    return tuple(side for side in tensor.shape if side > 0)


def describe_kind(layer: nn.Module) -> str:
    """Such as "conv 3x3/2 g32" (kernel, stride, groups), "depthwise 3x3", "max pool 2x2/2" or "batch norm"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", type(layer).__name__).lower()  # of "MaxPool2d": "max pool2d"
    words = re.sub(r"\dd$", "", words).replace("avg", "average")
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        groups: int = getattr(layer, "groups", 1)
        words = "depthwise" if groups > 1 and groups == getattr(layer, "in_channels", 0) else words
        words += f" {_sides(layer.kernel_size)}"
        words += "" if _sides(layer.stride) == "1x1" else f"/{_sides(layer.stride)}"
        words += f" g{groups}" if groups > 1 and words.startswith("conv") else ""
    return re.sub(r"/(\d+)x\1\b", r"/\1", words)  # of equal strides, one


def _sides(value: int | tuple[int, ...]) -> str:
    return f"{value}x{value}" if isinstance(value, int) else "x".join(map(str, value))
