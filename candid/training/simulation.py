"""A step of training and a pass of evaluation without their arithmetic: what they would hold, and how much they do.

The true network, loss, optimizer and loop run on fake tensors, which have shapes and no values. Every storage is seen
when it is made and when it is dropped. The batch is a prime number of images that divides no layer's width, so
that what grows with the batch gives itself away by its shape; one simulation then answers for every batch size.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from candid.checkpoint import build_network
from candid.data.loading import Batch
from candid.errors import InputError
from candid.models.fusion import fuse_norms
from candid.recipe import Recipe
from candid.training.freezing import Freezing, plan_freezing
from candid.training.loop import Trainer, train_one_epoch

Kind = Literal["weights", "gradients", "optimizer", "average", "batch", "activations", "temporary"]
NUM_IMAGES = 1009
SCALES = [0.0, *(2.0**exponent for exponent in range(13))]
"""Batch sizes at which the fullest moment is looked for; between two of them it is one of theirs, or nearly so."""
DENSE_PRODUCTS = {"candid::norm_product": (0, 3, 1), "candid::norm_product_backward": (8, 12, 2)}
"""Matrix products inside pieces of the dense block: arguments that are maps and weight, and how many products."""
CODE_BYTES = {
    ("aten::convolution", torch.float32): 0.05 * 2**20,
    ("aten::convolution", torch.bfloat16): 0.25 * 2**20,
    ("candid::norm_product", torch.bfloat16): 3.8 * 2**20,
}
"""What oneDNN keeps for each shape of a product and its gradients: the code that it writes for it, as measured."""
DEPTH_DRAWS = {"survival": 1.0, "drop_path": 0.0}
"""Attributes of modules that leave out layers by chance, and the values at which they leave out none."""


@dataclass(frozen=True)
class Moment:
    """What is held at one moment, in bytes: what does not depend on the batch, and what each image of it adds."""

    fixed: Mapping[Kind, int]
    per_image: Mapping[Kind, float]

    def parts(self, batch_size: int, micro_batch_size: int = 0) -> dict[Kind, float]:
        """Bytes by kind; the batch itself is whole where its images go through the network in micro-batches."""
        images = micro_batch_size or batch_size
        parts: dict[Kind, float] = dict(self.fixed)
        for kind, each in self.per_image.items():
            parts[kind] = parts.get(kind, 0) + each * (batch_size if kind == "batch" else images)
        return parts


@dataclass(frozen=True)
class Work:
    """What a step does for each image."""

    multiply_adds: float
    """Of convolutions and matrix products."""
    bytes_moved: float
    """Read and written by everything else."""
    fixed_bytes_moved: float
    """The same, of the whole step and whatever its batch: the update of the weights."""


@dataclass(frozen=True)
class Simulation:
    """What a step of training and a pass of evaluation hold and do."""

    training: tuple[Moment, ...]
    evaluation: tuple[Moment, ...]
    gradients: int
    """Bytes of all gradients."""
    code: float
    """Bytes of the code that is written for the network's shapes, on the CPU."""
    checkpoint: int
    """Bytes of the evaluated weights."""
    work: Work
    saved_per_image: float
    """Bytes that the forward pass keeps for the backward pass, for each image."""
    normalises: bool
    """Whether the network has batch normalisation, which sees one micro-batch at a time."""


def simulate(
    recipe: Recipe, num_classes: int, device: torch.device, evaluation: tuple[Moment, ...] | None = None
) -> Simulation:
    """Simulate a resolved recipe's step; `recipe.training.batch_size` does not matter.

    `evaluation` is known from a simulation of the same network, or None.

    Raises:
        InputError: if the network does what cannot be followed without values.
    """
    recipe = recipe.replace(
        {"training.micro_batch_size": 0, "training.batch_size": NUM_IMAGES, "training.compile": False}
    )
    with torch.device("meta"):
        blueprint, freezing = build_network(recipe, num_classes), plan_freezing(recipe, num_classes)
    for module in blueprint.modules():
        for name in DEPTH_DRAWS.keys() & vars(module).keys():
            setattr(module, name, DEPTH_DRAWS[name])
    ledger = _Ledger(device)
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(), ledger:
            return _run(ledger, _FakeTrainer(recipe, blueprint, freezing, num_classes, device), num_classes, evaluation)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(
            f"The memory of {recipe.model.name} cannot be predicted, because what it does depends on the values that "
            f"it meets ({first_line}); expected a network whose shapes tell all. Train it without --memory."
        ) from error


class _FakeTrainer(Trainer):
    """A trainer whose tensors have no values."""

    def __init__(
        self, recipe: Recipe, blueprint: nn.Module, freezing: Freezing, num_classes: int, device: torch.device
    ) -> None:
        """The network is made after `blueprint`, which has no values either, but no fake mode minds it."""
        self._blueprint, self._freezing = blueprint, freezing
        super().__init__(recipe, num_classes, 1, device)

    def build(self, num_classes: int) -> nn.Module:
        return self.copy_model()

    def plan_freezing(self, num_classes: int) -> Freezing:
        return self._freezing

    def copy_model(self) -> nn.Module:
        def fake(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)

        with unset_fake_temporarily():
            model = copy.deepcopy(self._blueprint)
        return model._apply(fake)  # pyright: ignore[reportPrivateUsage]  # `to` would swap tensors, and may not

    def refuse_divergence(self, batch: Batch) -> None:
        """There is nothing to look at."""


def _run(ledger: "_Ledger", trainer: Trainer, num_classes: int, evaluation: tuple[Moment, ...] | None) -> Simulation:
    model, data = trainer.model, trainer.recipe.data
    ledger.label("weights", model.state_dict().values())
    if trainer.average is not None:
        ledger.label("average", trainer.average.state_dict().values())
    _fill_optimizer(ledger, trainer.optimizer)
    images = torch.empty(NUM_IMAGES, data.channels, data.image_size, data.image_size, device=trainer.device)
    images = images.contiguous(memory_format=torch.channels_last)
    pixels = torch.empty(images.shape, dtype=torch.uint8, device=trainer.device)
    batch = Batch(images, torch.empty(NUM_IMAGES, num_classes, device=trainer.device), torch.arange(NUM_IMAGES))
    made_ahead = torch.empty_like(images), torch.empty_like(pixels), torch.empty_like(batch.targets)
    ledger.label("batch", (images, pixels, batch.targets, *made_ahead))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(ledger.label_gradient)
    with ledger.watched() as training, ledger.saved_tensors():
        train_one_epoch(trainer, [batch], [], lambda _: None)
    if evaluation is None:
        with ledger.watched() as watch, torch.no_grad():
            fuse_norms(trainer.evaluated_model.eval())(images).float().softmax(dim=1)
        evaluation = watch.moments
    evaluated = trainer.evaluated_model.state_dict().values()
    return Simulation(
        training=training.moments,
        evaluation=evaluation,
        code=sum(ledger.code.values()) if trainer.device.type == "cpu" else 0.0,
        gradients=sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        checkpoint=sum(tensor.nbytes for tensor in evaluated),
        work=Work(training.multiply_adds / NUM_IMAGES, training.bytes_moved / NUM_IMAGES, training.fixed_bytes_moved),
        saved_per_image=training.saved / NUM_IMAGES,
        normalises=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()),  # pyright: ignore[reportPrivateUsage]
    )


def _fill_optimizer(ledger: "_Ledger", optimizer: torch.optim.Optimizer) -> None:
    """Give it the buffers that its first step makes, so that the step that is watched finds them."""
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        names = ("momentum_buffer",) * bool(group["momentum"]) if is_sgd else ("exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            buffers = {name: torch.empty_like(parameter) for name in names}
            ledger.label("optimizer", buffers.values())
            optimizer.state[parameter] = buffers if is_sgd else {"step": torch.tensor(0.0), **buffers}


@dataclass
class _Watch:
    """What the ledger saw while a block ran."""

    fullest: list[Moment | None] = field(default_factory=lambda: [None] * len(SCALES))
    most: list[float] = field(default_factory=lambda: [0.0] * len(SCALES))
    multiply_adds: float = 0.0
    bytes_moved: float = 0.0
    fixed_bytes_moved: float = 0.0
    saved: int = 0

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The fullest moment for each batch size of SCALES, each once."""
        return tuple({id(moment): moment for moment in self.fullest if moment is not None}.values())


@dataclass
class _Held:
    """A storage that is alive."""

    num_bytes: int
    grows: bool
    """Whether it grows with the batch."""
    kind: Kind = "temporary"


class _Ledger(TorchDispatchMode):
    """Sees each operation, and each storage from its first tensor to its last."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._on_cpu = device.type == "cpu"  # to ask a fake tensor takes time
        self._held: dict[int, _Held] = {}
        self._fixed: Counter[Kind] = Counter()
        self._growing: Counter[Kind] = Counter()
        self._watch = _Watch()
        self.code: dict[object, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        is_new = [self._note(tensor) for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        if func._overloadpacket in flop_registry:
            self._watch.multiply_adds += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) / 2
            self._note_workspace(args)
            self._note_code(func.name(), args)
        elif func.name() in DENSE_PRODUCTS:
            maps, weight, times = DENSE_PRODUCTS[func.name()]
            self._watch.multiply_adds += times * args[maps].shape[0] * args[weight].numel()
            self._note_code(func.name(), args)
        elif any(is_new) or func._schema.is_mutable:
            moved = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            grows = any(self._held[_key(leaf)].grows for leaf in moved if _key(leaf) in self._held)
            num_bytes = sum(leaf.nbytes for leaf in moved)
            self._watch.bytes_moved += num_bytes if grows else 0
            self._watch.fixed_bytes_moved += 0 if grows else num_bytes
        return out

    @contextmanager
    def watched(self) -> Generator[_Watch]:
        """Begin a new watch; it is complete behind the block."""
        self._watch = _Watch()
        yield self._watch
        self._look()

    @contextmanager
    def saved_tensors(self) -> Generator[None]:
        """Label what the forward pass keeps for the backward pass in the block."""

        def pack(tensor: Tensor) -> Tensor:
            held = self._held.get(_key(tensor))
            if held is not None and held.kind == "temporary":
                self.label("activations" if held.grows else "weights", (tensor,))  # autocast keeps weights in bf16
                self._watch.saved += held.num_bytes if held.grows else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def label(self, kind: Kind, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of tensors are for."""
        for held in (self._held[_key(tensor)] for tensor in tensors if _key(tensor) in self._held):
            counter = self._growing if held.grows else self._fixed
            counter[held.kind] -= held.num_bytes
            counter[kind] += held.num_bytes
            held.kind = kind

    def label_gradient(self, parameter: Tensor) -> None:
        """Label a parameter's gradient, which has just been added up."""
        if parameter.grad is not None:
            self.label("gradients", (parameter.grad,))

    def _note(self, tensor: Tensor) -> bool:
        """Note a tensor's storage where it is new."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._held or not isinstance(tensor, FakeTensor):  # a tensor of the blueprint
            return False
        grows = any(side % NUM_IMAGES == 0 and side for side in tensor.shape)
        held = self._held[key] = _Held(storage.nbytes(), grows)
        (self._growing if grows else self._fixed)[held.kind] += held.num_bytes
        weakref.finalize(storage, self._forget, key)
        return True

    def _forget(self, key: int) -> None:
        self._look()
        held = self._held.pop(key)
        (self._growing if held.grows else self._fixed)[held.kind] -= held.num_bytes

    def _look(self, extra: int = 0) -> None:
        """Keep the present moment where it is the fullest so far for some batch size; called before memory is freed."""
        fixed, per_image = self._fixed.total() + extra, self._growing.total() / NUM_IMAGES
        moment: Moment | None = None
        for index, scale in enumerate(SCALES):
            if fixed + scale * per_image > self._watch.most[index]:
                self._watch.most[index] = fixed + scale * per_image
                moment = moment or self._moment(extra)
                self._watch.fullest[index] = moment

    def _moment(self, extra: int) -> Moment:
        fixed: dict[Kind, int] = {**self._fixed, "temporary": self._fixed["temporary"] + extra}
        per_image: dict[Kind, float] = {kind: num_bytes / NUM_IMAGES for kind, num_bytes in self._growing.items()}
        return Moment(fixed, per_image)

    def _note_code(self, name: str, args: tuple[Any, ...]) -> None:
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        shapes = (name, *((leaf.shape, leaf.dtype) for leaf in tensors))
        self.code[shapes] = CODE_BYTES.get((name, tensors[0].dtype), 0.0)

    def _note_workspace(self, args: tuple[Any, ...]) -> None:
        """A product on the CPU holds its weights once more, in the order and format that suit the processor."""
        fixed = [leaf for leaf in args if isinstance(leaf, Tensor)] if self._on_cpu else []
        sizes = [leaf.numel() * 4 for leaf in fixed if _key(leaf) in self._held and not self._held[_key(leaf)].grows]
        self._look(max(sizes, default=0))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
