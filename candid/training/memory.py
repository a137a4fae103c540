"""The peak memory of training a resolved recipe, predicted before anything large is made.

On the CPU it is the resident memory of the process, on a GPU what tensors hold there. `simulation` tells what a step
and an evaluation hold; what it cannot see is added here: the libraries' own pages, measured now, the pictures, and
the weights that are loaded again for the result.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from candid.data.catalog import CATALOG
from candid.data.examples import DataSet
from candid.data.loading import fits_in_memory
from candid.device import AUTOCAST_TYPES, held_memory
from candid.errors import InputError
from candid.recipe import Recipe
from candid.training.simulation import Moment, Simulation, simulate

Phase = Literal["opening the data", "training", "evaluating", "the result"]
MARGIN_BYTES = 20 * 2**20
"""Of the floor: small objects and pages of libraries that come later, 13 to 25 MiB where it was measured."""
EXAMPLE_BYTES = 200
"""Name, label and places in the order of an epoch, for each picture."""
PARTS = (
    "floor", "data", "weights", "gradients", "optimizer", "average", "batch", "activations", "temporary"
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """How many pictures a recipe reads, and how they come."""

    train: int
    validation: int
    test: int
    stored_bytes: int | None
    """Bytes of one as the data set has it in memory; None where it is a file."""

    @classmethod
    def of(cls, data_set: DataSet, recipe: Recipe) -> "Pictures":
        """Counted by the catalog, or in the folder; no picture is read."""
        entry = CATALOG.get(data_set.name)
        sizes = {split: len(opener()) for split, opener in data_set.openers.items()} if entry is None else entry.sizes
        train, held_out = sizes["train"], recipe.data.validation or 0
        if "validation" in sizes:
            validation = sizes["validation"] if held_out else 0
        else:
            validation = round(train * held_out) if held_out < 1 else int(held_out)
            train -= validation
        stored = None if data_set.image_size is None else recipe.data.channels * data_set.image_size**2
        return cls(train, validation, sizes.get("test", 0), stored)


@dataclass(frozen=True)
class Prediction:
    """The fullest moment of a run."""

    phase: Phase
    parts: Mapping[str, float]
    """Bytes, of each of PARTS."""
    step_s: float
    """About how long a step takes."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


class Predictor:
    """Predicts a resolved recipe and its variations on one data set and one device; simulates each network once."""

    def __init__(self, data_set: DataSet, recipe: Recipe, device: torch.device, num_ranks: int = 1) -> None:
        """Nothing is measured or simulated yet. Of `num_ranks` processes, one is predicted, with its part of a batch.

        Raises:
            InputError: if memory cannot be predicted on this device.
        """
        if device.type not in ("cpu", "cuda"):
            raise InputError(
                f"The memory of {device} cannot be predicted; expected cpu or cuda. Train there without --memory."
            )
        self.device, self.num_ranks, self.pictures = device, num_ranks, Pictures.of(data_set, recipe)
        self.num_classes = len(data_set.class_names)
        self._simulations: dict[tuple[str, str], Simulation] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    @cached_property
    def floor(self) -> float:
        """Bytes held before anything is made, after a step so small that it only loads what a step needs.

        A simulation leaves some objects behind, so it comes before.
        """
        _train_a_little(self.device)
        return held_memory(self.device) + (0 if self.device.type == "cuda" else MARGIN_BYTES)

    def simulation(self, recipe: Recipe) -> Simulation:
        """What the recipe's step holds and does."""
        key = recipe.training.memory, recipe.training.precision
        if key not in self._simulations:
            evaluation = next((known.evaluation for (memory, _), known in self._simulations.items()
                               if (memory == "plain") == (key[0] == "plain")), None)  # fmt: skip
            self._simulations[key] = simulate(recipe, self.num_classes, self.device, evaluation)
        return self._simulations[key]

    def batch_size(self, recipe: Recipe) -> int:
        """Examples of each step for one rank."""
        return math.ceil(recipe.training.batch_size / self.num_ranks)

    def predict(self, recipe: Recipe) -> Prediction:
        """The fullest moment of a run of the recipe."""
        simulation, batch_size = self.simulation(recipe), self.batch_size(recipe)
        data, evaluation_size = self._data(recipe), recipe.limits.evaluation_batch_size
        moments: list[tuple[Phase, Mapping[str, float]]] = [
            ("opening the data", {"data": 3 * self._stored_bytes(self.pictures.train + self.pictures.validation)})
        ]
        for moment in simulation.training:
            moments.append(("training", data | _split_parts(moment, simulation, batch_size, recipe)))
        for moment in simulation.evaluation:
            parts = moment.parts(min(evaluation_size, max(1, self.pictures.validation)))
            moments.append(("evaluating", data | parts))
            moments.append(("the result", data | self._result_parts(moment, simulation, evaluation_size)))
        phase, parts = max(moments, key=lambda pair: sum(pair[1].values()))
        parts = {"floor": self.floor + simulation.code} | {name: parts[name] for name in PARTS if parts.get(name)}
        return Prediction(phase, parts, self._step_s(simulation, recipe, batch_size))

    def _data(self, recipe: Recipe) -> dict[str, float]:
        """Bytes of the pictures and their names while a run trains."""
        settings, pictures = recipe.data, self.pictures
        names = EXAMPLE_BYTES * (pictures.train + pictures.validation)
        pixels, margin = settings.channels * settings.image_size**2, 2 * recipe.augmentation.crop_padding
        if pictures.stored_bytes is None:
            wanted = settings.in_memory
            if wanted is None:
                wanted = fits_in_memory(pictures.train, settings.channels, settings.image_size)
            each = pixels if wanted else 0
        else:
            each = pictures.stored_bytes
        side = round((each / settings.channels) ** 0.5)
        cut = settings.channels * (side + margin * (side == settings.image_size)) ** 2 if each else 0
        on_device = pictures.train * cut
        if self.device.type == "cuda":
            return {"data": on_device}
        return {"data": names + each * (pictures.train + pictures.validation) + on_device}

    def _stored_bytes(self, num_pictures: int) -> int:
        return 0 if self.device.type == "cuda" else num_pictures * (self.pictures.stored_bytes or 0)

    def _result_parts(self, moment: Moment, simulation: Simulation, evaluation_size: int) -> dict[str, float]:
        """The chosen and the last checkpoint, and the network that is evaluated with them; training is over."""
        num_pictures = self.pictures.test or self.pictures.validation
        parts: dict[str, float] = {
            kind: each * min(evaluation_size, max(1, num_pictures)) for kind, each in moment.per_image.items()
        }
        return parts | {
            "weights": 3 * simulation.checkpoint,
            "data": 2 * self._stored_bytes(self.pictures.train + self.pictures.validation)
            + 2 * self._stored_bytes(self.pictures.test),
        }

    def _step_s(self, simulation: Simulation, recipe: Recipe, batch_size: int) -> float:
        precision, work = recipe.training.precision, simulation.work
        if precision not in self._rates:
            self._rates[precision] = measure_rates(self.device, precision)
        products_per_s, bytes_per_s = self._rates[precision]
        seconds = batch_size * (work.multiply_adds / products_per_s + work.bytes_moved / bytes_per_s)
        return seconds + work.fixed_bytes_moved / bytes_per_s


def _split_parts(moment: Moment, simulation: Simulation, batch_size: int, recipe: Recipe) -> dict[str, float]:
    """A moment of training; behind the first micro-batch, all gradients are there from the start."""
    micro_batch_size = min(recipe.training.micro_batch_size or batch_size, batch_size)
    parts: dict[str, float] = {**moment.parts(batch_size, micro_batch_size)}
    if micro_batch_size < batch_size:
        parts["gradients"] = max(simulation.gradients, parts.get("gradients", 0))
    return parts


def measure_rates(device: torch.device, precision: str) -> tuple[float, float]:
    """Multiply-adds a second of a small convolution with its gradients, and bytes a second of a sum."""
    images, layer = torch.ones(8, 64, 32, 32, device=device), nn.Conv2d(64, 64, 3, padding=1, device=device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = layer.to(memory_format=torch.channels_last)
    large = torch.ones(2**22, device=device)
    dtype = AUTOCAST_TYPES.get(precision)

    def convolve() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            layer(images).sum().backward()

    products = 3 * 8 * 32 * 32 * 64 * 64 * 9
    return products / _fastest(convolve, device), 3 * large.nbytes / _fastest(lambda: large + large, device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of five calls, after one to warm up."""
    seconds: list[float] = []
    for _ in range(6):
        started_at_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started_at_s)
    return min(seconds[1:])


def _train_a_little(device: torch.device) -> None:
    """One step of a network of three layers, which loads the code that any step runs."""
    with torch.random.fork_rng(devices=[]):
        layers = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    layers = layers.to(device=device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9, foreach=True)
    images = torch.ones(2, 16, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = layers(images)
        cross_entropy(logits.float(), torch.zeros(2, dtype=torch.long, device=device)).backward()
    optimizer.step()
