"""The parts of a recipe, each a frozen group of keys; every key has its one default here."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from candid.sizes import EXPECTED, PATTERN, parse_size

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
PATTERNS = {
    "model.freeze": "'none', 'backbone' or 'until:PART', such as until:stages.2",
    "limits.max_time": "a time such as 90s, 30m or 2h",
    "limits.save_every": "'1epoch', a number of steps such as 200steps, or a time such as 5m",
    "limits.memory": EXPECTED,
}
"""What is expected of keys whose text follows a pattern."""


class Part(BaseModel):
    """A frozen group of keys; an unknown key or a value of another type is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Part):
    """Which pictures, how they are made square, and what is held out to choose by."""

    name: str = "fashion-mnist-mini"
    """A catalog name (`candid datasets`) or a folder."""
    image_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in px that the network sees; 0 takes the data set's own, or else the network's."""
    channels: Literal[0, 1, 3] = 0
    """1 for grey, 3 for RGB; 0 takes what the data set has."""
    validation: Annotated[float, Field(ge=0)] | None = None
    """Examples held out of the training split, where the data set has no validation split of its own: a count, or
    a share below 1. 0 trains without validation. None takes the data set's custom: 5,000 of CIFAR, 6,000 of SVHN, a
    tenth elsewhere."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """What happens to a picture that is not square."""
    in_memory: bool | None = None
    """Keep the pictures of a folder in memory, decoded; false reads them again for every batch. None does what suits
    their size and number. Other data sets always are in memory."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read pictures which are not in memory; 0 reads them between two steps. None takes what suits."""
    bad_images: Literal["stop", "skip"] = "stop"
    """What to do about files of a folder that are no pictures: stop and list them, or skip and record them. No other
    picture ever takes the place of one."""

    @model_validator(mode="after")
    def _validation_is_a_count_or_a_share(self) -> Self:
        if self.validation is not None and self.validation >= 1 and self.validation % 1:
            raise ValueError(
                f"data.validation is {self.validation}; it must be a whole number of examples, or a share below 1."
            )
        return self


class Augmentation(Part):
    """Training-only randomness; the neutral value of each key switches it off."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pad by so many px with black, then cut a random window of the original size."""
    random_resized_crop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Cut a window of at least this share of the area, with sides from 3:4 to 4:3, and resize it; 0 is off."""
    mirror: bool = False
    """Swap left and right in half of the examples."""
    mirror_alternates: bool = False
    """Each example comes mirrored in every other epoch, chance decides only in which; else chance decides each time."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Scale brightness, contrast and saturation, each by a factor in [1 - value, 1 + value]."""
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    """Magnitude of two random operations of RandAugment (Cubuk et al. 2020), in [0, 30]; 0 is off."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in px of a square that is blanked (DeVries and Taylor 2017)."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup (Zhang et al. 2018): a blend of two examples and of their labels; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix (Yun et al. 2019): a window of another example; with mixup too, half the examples each."""

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.crop_padding and self.random_resized_crop:
            raise ValueError(
                f"augmentation.crop_padding is {self.crop_padding} and augmentation.random_resized_crop is "
                f"{self.random_resized_crop}; a picture is cut once, so set one of them to 0."
            )
        if self.mirror_alternates and not self.mirror:
            raise ValueError(
                "augmentation.mirror_alternates is true, but augmentation.mirror is false; set both, or neither."
            )
        return self


class Model(Part):
    """Which network."""

    name: str = "lenet-relu"
    """A name that `candid models` shows."""
    dropout: Share | None = None
    """Probability of dropping a value, where the network has dropout; None takes the paper's."""
    weights: str = ""
    """File or address of the weights to begin from; empty begins from random ones."""
    new_head: bool = False
    """Leave the head of `weights` out and begin with a random one, as other classes need."""
    freeze: Annotated[str, Field(pattern=r"^(none|backbone|until:.+)$")] = "none"
    """Which layers stay as they were loaded: none, backbone (all but the head), or until:PART, all that the data
    reaches before a part such as stages.2. Their normalisation uses the statistics that were loaded."""
    unfreeze_every: Annotated[int, Field(ge=0)] = 0
    """Epochs after which the last frozen part is trained too, then the one before it; 0 keeps them frozen."""

    @model_validator(mode="after")
    def _freezing_needs_weights(self) -> Self:
        if self.freeze != "none" and not self.weights:
            raise ValueError(
                f"model.freeze is {self.freeze!r}, but model.weights is empty, and random weights would stay random. "
                "Use --weights FILE, or freeze none."
            )
        if self.unfreeze_every and self.freeze == "none":
            raise ValueError(
                f"model.unfreeze_every is {self.unfreeze_every}, but model.freeze is 'none'; it must be 0, "
                "or say what to freeze."
            )
        if self.new_head and not self.weights:
            raise ValueError("model.new_head is true, but model.weights is empty; it must be false, or add --weights.")
        return self


class Training(Part):
    """How long, in what portions, and in what arithmetic."""

    epochs: Count = 10
    batch_size: Count = 64
    """Examples per optimizer step."""
    micro_batch_size: Annotated[int, Field(ge=0)] = 0
    """Examples per forward pass; gradients are accumulated over the batch. 0 takes the whole batch at once."""
    early_image_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in px to which pictures are shrunk in the first half of the epochs, which takes less time; 0 is off."""
    label_smoothing: Share = 0.0
    ema_decay: Share = 0.0
    """Decay per step of the running average of the weights, which is then what is evaluated; 0 is off."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the whole gradient; 0 is off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto takes what is faster here, fp32 or bf16."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Order of a picture's values in memory; auto takes what is faster here."""
    memory: Literal["auto", "plain", "shared", "recompute"] = "auto"
    """What the forward pass keeps for the backward pass; the mathematics is the same. plain: what every layer keeps.
    shared, of DenseNets alone: the maps of a dense block once, in one buffer. recompute: the least; the rest is
    computed again. auto takes shared where it is faster here, else plain."""
    sync_batch_norm: bool = False
    """Take the statistics of batch normalisation over all ranks, on GPUs; false takes them on each rank alone."""
    compile: bool | None = None
    """Let torch.compile fuse the network. None does so where `--tune full` finds it faster."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that compute on the CPU; 0 takes as many as torch does, or fewer where that is faster here."""
    deterministic: bool | None = None
    """Refuse operations that may give other bits each time; None is true on the CPU."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"training.micro_batch_size is {self.micro_batch_size}; it must be at most training.batch_size "
                f"({self.batch_size})."
            )
        return self


class Optimizer(Part):
    """How a gradient becomes a step."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """muon: for the filters of convolutions; all else learns by adamw, at `vector_factor` of the rate."""
    rate: Annotated[float, Field(gt=0)] = 0.07
    """Peak learning rate."""
    momentum: Share = 0.9
    """Of SGD and Muon; of Adam and AdamW it is beta 1."""
    nesterov: bool = True
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    decay_norms_and_biases: bool = True
    """False exempts the parameters of normalisation layers and all biases from weight decay."""
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    """What the learning rate of the head is multiplied by, for fine-tuning."""
    vector_factor: Annotated[float, Field(gt=0)] = 0.04
    """What Muon's learning rate is multiplied by for biases, normalisations and the head, which learn by AdamW."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov is true with momentum 0; it must be false, or momentum above 0.")
        return self


class Schedule(Part):
    """The learning rate as a function of the step."""

    name: Literal["constant", "multi-step", "cosine", "one-cycle", "plateau"] = "one-cycle"
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Linear rise to the peak rate at the beginning: a share of the run below 1, epochs from 1 on."""
    milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = (0.5, 0.75)
    """When multi-step multiplies the rate by `factor`: shares of the run below 1, epochs from 1 on."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of multi-step and of plateau."""
    patience: Count = 5
    """Epochs without a better training loss after which plateau multiplies the rate by `factor`."""


class Limits(Part):
    """What a run may take and how often it saves; none of this changes what it learns."""

    memory: Annotated[str, Field(pattern=PATTERN)] = ""
    """Most memory that a run may hold, such as 2GiB: of the process on a CPU, of tensors on a GPU; empty is no limit.
    A new run chooses training.memory and what else it needs to fit."""
    evaluation_batch_size: Count = 128
    """Pictures that are evaluated at once."""

    max_time: Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(s|m|h))?$")] = ""
    """Time after which the run stops and saves, such as 30m or 2h; empty is no limit."""
    save_every: Annotated[str, Field(pattern=r"^(1epoch|[1-9]\d*steps?|[1-9]\d*(s|m|h))$")] = "1epoch"
    """When checkpoints are saved beside those at the ends of epochs: 200steps, 5m."""

    @property
    def memory_bytes(self) -> int:
        """The most memory in bytes; 0 is no limit."""
        return parse_size(self.memory)

    @property
    def max_seconds(self) -> float:
        """The longest time in seconds, perhaps infinite."""
        return _seconds(self.max_time) if self.max_time else math.inf

    @property
    def steps_between_saves(self) -> int:
        """Steps from one save to the next within an epoch; 0 where steps do not decide."""
        return int(self.save_every.partition("step")[0]) if "step" in self.save_every else 0

    @property
    def seconds_between_saves(self) -> float:
        """Time in seconds from one save to the next within an epoch, perhaps infinite."""
        return math.inf if "step" in self.save_every or "epoch" in self.save_every else _seconds(self.save_every)


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]
