"""A data set and a recipe become batches: from one uint8 tensor in memory, from the cache, or streamed by workers.

All ways give the same pixels for the same example. Validation and test pictures come without randomness, in
the data set's order; training pictures in an order, and with variations, that depend on the seed alone.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.utils.data import DataLoader, Dataset

from candid.data import workers
from candid.data.ahead import make_ahead
from candid.data.augmentation import Augmenter, cut_squares, cut_windows
from candid.data.decoding import UnreadablePicture
from candid.data.examples import (
    DataSet,
    Examples,
    FileExamples,
    StoredExamples,
    hold_out,
    pick_evenly,
)
from candid.data.picture_cache import CachedExamples, open_cached
from candid.data.preprocessing import Preprocessing, with_channels
from candid.data.reading import (
    UnreadablePictures,
    decode_all,
    find_unreadable,
    noting_unreadable,
    read_square,
    read_window,
    refuse_unreadable,
)
from candid.device import num_cores
from candid.randomness import shuffled
from candid.recipe import Recipe
from candid.recipe_parts import Data

MAX_SIDE_IN_MEMORY_PX = 96
MAX_BYTES_IN_MEMORY = 2 * 2**30
NUM_PICTURES_FOR_STATISTICS = 1000
EVALUATION_BATCH_SIZE = 128


class Batch(NamedTuple):
    """What one optimizer step learns from."""

    inputs: Tensor
    """float32 [N, C, H, W] in channels-last memory."""
    targets: Tensor
    """float32 [N, classes]; rows sum to 1."""
    indices: Tensor
    """int64, of the step's examples over all ranks; N is this rank's part of them."""


@dataclass(frozen=True)
class TrainingData:
    """What a run may see while it trains; the test split is not among it."""

    train: Examples
    validation: Examples | None
    preprocessing: Preprocessing

    @property
    def unreadable(self) -> dict[str, tuple[str, ...]]:
        """Of each split, what is wrong with the files that were left out."""
        held_out = {} if self.validation is None else {"validation": self.validation.unreadable}
        return {"train": self.train.unreadable, **held_out}


def open_training_data(data_set: DataSet, recipe: Recipe) -> TrainingData:
    """The training and validation examples of a resolved recipe, and the preprocessing that both share.

    Raises:
        UnreadablePictures: if there are such in either, unless `data.bad_images` says to leave them out.
    """
    channels = data_set.channels if recipe.data.channels == 0 else recipe.data.channels
    neutral = Preprocessing(
        image_size=recipe.data.image_size,
        channels=channels,
        fit=recipe.data.fit,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    train, validation = _decode_splits(data_set, recipe, neutral)
    if data_set.mean is not None and data_set.std is not None and channels == data_set.channels:
        mean, std = data_set.mean, data_set.std
    else:
        mean, std = channel_statistics(train, neutral)
    return TrainingData(
        train=train,
        validation=validation,
        preprocessing=neutral.model_copy(update={"mean": mean, "std": std}),
    )


def _decode_splits(data_set: DataSet, recipe: Recipe, preprocessing: Preprocessing) -> tuple[Examples, Examples | None]:
    """The training and the validation examples, decoded once."""
    train, validation = hold_out(data_set, recipe)
    may_cache = not recipe.augmentation.random_resized_crop  # which cuts from the whole picture, unless that is small
    problems: dict[Path, str] = {}
    with noting_unreadable(problems):
        train = decode_once(train, preprocessing, recipe.data, may_cache=may_cache)
    if validation is not None:
        with noting_unreadable(problems):
            validation = decode_once(validation, preprocessing, recipe.data)
    refuse_unreadable(problems)
    return train, validation


def decode_once(examples: Examples, preprocessing: Preprocessing, data: Data, *, may_cache: bool = True) -> Examples:
    """The examples decoded and squared: in one tensor if so wanted, else in the cache; as they are where neither is.

    `data.in_memory` None wants them in memory where they are small enough. What is in memory from the start stays
    there. The cache serves those in memory too; `may_cache` is about the others.

    Raises:
        UnreadablePictures: if there are such, unless `data.bad_images` says to leave them out.
    """
    if isinstance(examples, StoredExamples):
        return replace(examples, images=with_channels(examples.images, preprocessing.channels))
    while True:
        try:
            return _decode_once(examples, preprocessing, data, may_cache)
        except UnreadablePictures as error:
            if data.bad_images == "stop":
                raise
            examples = examples.leave_out(error.problems)


def _decode_once(
    examples: FileExamples, preprocessing: Preprocessing, data: Data, may_cache: bool
) -> StoredExamples | FileExamples:
    in_memory = data.in_memory
    if in_memory is None:
        in_memory = fits_in_memory(len(examples), preprocessing.channels, preprocessing.image_size)
    cached = open_cached(examples, preprocessing) if in_memory or may_cache else None
    if in_memory:
        pictures = decode_all(examples, preprocessing) if cached is None else cached.read(torch.arange(len(cached)))
        return StoredExamples(pictures, examples.labels, examples.files, examples.unreadable)
    if cached is None and data.bad_images == "skip":  # else they are met when it is too late to leave them out
        refuse_unreadable(find_unreadable(examples, preprocessing))
    return examples if cached is None else cached


def fits_in_memory(num_pictures: int, channels: int, side_px: int) -> bool:
    """Whether a folder's pictures are kept in memory where nothing is said about it."""
    return side_px <= MAX_SIDE_IN_MEMORY_PX and num_pictures * channels * side_px**2 <= MAX_BYTES_IN_MEMORY


def channel_statistics(examples: Examples, preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], over pictures spread evenly over the examples."""
    sample = pick_evenly(examples, NUM_PICTURES_FOR_STATISTICS)
    if isinstance(sample, StoredExamples):
        images = sample.images
    elif isinstance(sample, CachedExamples):
        images = sample.read(torch.arange(len(sample)))
    else:
        images = decode_all(sample, preprocessing)
    values = images.double().transpose(0, 1).flatten(1) / 255  # [C, N * H * W]
    std = values.std(dim=1).clamp(min=1 / 255)  # blank pictures must not divide by zero
    return tuple(values.mean(dim=1).tolist()), tuple(std.tolist())


class TrainingBatches:
    """The batches of each epoch, on the device that trains."""

    def __init__(self, data: TrainingData, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        """Lay the pictures out for fast cutting; those on disk stay there."""
        self._recipe, self._preprocessing, self._device = recipe, data.preprocessing, device
        self._num_classes = num_classes
        self._labels = data.train.labels
        self.waited_s = 0.0
        """How long whoever learns from the batches has waited for them, over all epochs so far."""
        if isinstance(data.train, StoredExamples):
            self._pixels = StoredPixels(data.train, data.preprocessing, recipe, device)
        elif isinstance(data.train, CachedExamples):
            self._pixels = CachedPixels(data.train)
        else:
            self._pixels = StreamedPixels(data.train, data.preprocessing, recipe.data.workers)

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return len(self._labels)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return len(cut_epoch(torch.arange(self.num_examples), self._recipe.training.batch_size))

    def epoch(self, epoch: int, first: int = 0, rank: int = 0, num_ranks: int = 1) -> Generator[Batch]:
        """The batches of `epoch` = 0, 1, ... from number `first` on, each example once; of each batch a rank's part.

        Neither `first` nor the ranks change what is drawn for an example. Each batch is made while the one before is
        learnt from.
        """
        return make_ahead(self._make(epoch, first, rank, num_ranks), self._note_wait)

    def _make(self, epoch: int, first: int, rank: int, num_ranks: int) -> Generator[Batch]:
        seed = self._recipe.seed
        augmenter = Augmenter(self._recipe.augmentation, seed, epoch, self.num_examples)
        order = shuffled(self.num_examples, seed, "order", epoch)
        batches = cut_epoch(order, self._recipe.training.batch_size)
        windows = [part for batch in batches for part in batch.tensor_split(num_ranks)]
        if augmenter.mixes:  # each batch also fetches the partner of its last example
            first_of_next = [window[:1] for window in windows[1:]] + [order[:1]]
            windows = [torch.cat(pair) for pair in zip(windows, first_of_next, strict=True)]
        windows, batches = windows[rank::num_ranks][first:], batches[first:]
        pictures_of_windows = self._pixels.training(windows, augmenter)
        shown = self._preprocessing.model_copy(update={"image_size": shown_image_size(self._recipe, epoch)})
        for indices, batch, pictures in zip(windows, batches, pictures_of_windows, strict=True):
            inputs = shown.normalise(shown.make_square(move(pictures, self._device)))
            inputs = augmenter.erase(inputs, indices)
            targets = move(one_hot(self._labels[indices], self._num_classes).float(), self._device)
            if augmenter.mixes:
                inputs, targets = augmenter.mix(inputs, targets, indices)
            yield Batch(inputs, targets, batch)

    def _note_wait(self, seconds: float) -> None:
        self.waited_s += seconds


def shown_image_size(recipe: Recipe, epoch: int) -> int:
    """Side in px of what a network learns from in `epoch` = 0, 1, ... of a resolved recipe."""
    early = epoch < recipe.training.epochs // 2
    return early * recipe.training.early_image_size or recipe.data.image_size


class EvaluationBatches:
    """(inputs [N, C, H, W], labels [N]) of all examples in their order, without randomness."""

    def __init__(
        self,
        examples: Examples,
        preprocessing: Preprocessing,
        device: torch.device,
        batch_size: int = EVALUATION_BATCH_SIZE,
    ) -> None:
        """Nothing is read before the first batch is asked for."""
        self.examples = examples
        self._preprocessing, self._device, self._batch_size = preprocessing, device, batch_size
        self.waited_s = 0.0
        """How long whoever evaluates them has waited for them."""

    def __iter__(self) -> Generator[tuple[Tensor, Tensor]]:
        """Batches of `batch_size`, the last one shorter, each made while the one before is evaluated."""
        return make_ahead(self._make(), self._note_wait)

    def _make(self) -> Generator[tuple[Tensor, Tensor]]:
        windows = list(torch.arange(len(self.examples)).split(self._batch_size))
        examples = self.examples
        if isinstance(examples, StoredExamples):
            pictures = (self._preprocessing.make_square(examples.images[window]) for window in windows)
        elif isinstance(examples, CachedExamples):
            pictures = map(examples.read, windows)
        else:
            pictures = StreamedPixels(examples, self._preprocessing).evaluation(windows)
        for indices, batch in zip(windows, pictures, strict=True):
            yield self._preprocessing.normalise(move(batch, self._device)), move(examples.labels[indices], self._device)

    def _note_wait(self, seconds: float) -> None:
        self.waited_s += seconds


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU fetches it while others go on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class StoredPixels:
    """Training pictures cut from one tensor in memory."""

    def __init__(
        self, examples: StoredExamples, preprocessing: Preprocessing, recipe: Recipe, device: torch.device
    ) -> None:
        """Pad all pictures once where each will be cut with an offset."""
        self._preprocessing, self._device = preprocessing, device
        side = preprocessing.image_size
        has_final_size = examples.images.shape[-2:] == (side, side)
        self._cuts_directly = has_final_size and not recipe.augmentation.random_resized_crop
        margin = recipe.augmentation.crop_padding if self._cuts_directly else 0
        by_pixel = examples.images.permute(0, 2, 3, 1)  # [N, H, W, C]
        self._stored = pad(by_pixel, (0, 0, margin, margin, margin, margin)).contiguous().to(device)

    def training(self, windows: Sequence[Tensor], augmenter: Augmenter) -> Iterator[Tensor]:
        """Varied pictures uint8 [N, C, side, side] for each window of indices."""
        for indices in windows:
            if self._cuts_directly:
                top, left = augmenter.crop_offsets(indices)
                places = (part.to(self._device) for part in (indices, top, left))
                pictures = cut_windows(self._stored, *places, side=self._preprocessing.image_size)
            else:
                chosen = self._stored[indices.to(self._device)].permute(0, 3, 1, 2)
                pictures = cut_squares(self._preprocessing.make_square(chosen), indices, augmenter)
            yield augmenter.vary(pictures, indices)


class CachedPixels:
    """Training pictures read from the cache."""

    def __init__(self, examples: CachedExamples) -> None:
        """Nothing is read before the first batch is asked for."""
        self._examples = examples

    def training(self, windows: Sequence[Tensor], augmenter: Augmenter) -> Iterator[Tensor]:
        """Varied pictures uint8 [N, C, side, side] for each window of indices."""
        for indices in windows:
            yield augmenter.vary(cut_squares(self._examples.read(indices), indices, augmenter), indices)


class StreamedPixels:
    """Pictures decoded from disk by worker processes, batch by batch."""

    def __init__(self, examples: FileExamples, preprocessing: Preprocessing, workers: int | None = None) -> None:
        """Nothing is read before the first batch is asked for."""
        self._examples, self._preprocessing, self._workers = examples, preprocessing, workers

    def training(self, windows: Sequence[Tensor], augmenter: Augmenter) -> Iterator[Tensor]:
        """Varied pictures uint8 [N, C, side, side] for each window of indices."""
        return self._stream(windows, augmenter)

    def evaluation(self, windows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Squared pictures uint8 [N, C, side, side] for each window of indices."""
        return self._stream(windows, None)

    def _stream(self, windows: Sequence[Tensor], augmenter: Augmenter | None) -> Iterator[Tensor]:
        num_workers = _num_workers() if self._workers is None else self._workers
        loader = DataLoader(
            _Pictures(self._examples, self._preprocessing, augmenter),
            batch_size=None,
            sampler=windows,  # pyright: ignore[reportArgumentType]  # any iterable of indices will do
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            timeout=workers.CHECK_S if num_workers else 0,
            worker_init_fn=workers.leave_signals_to_the_parent,
            generator=torch.Generator(),  # or it would take a number of those that layers draw from
        )
        for batch in workers.watch(loader):
            if isinstance(batch, dict):  # the texts of errors: an exception would lose its own on the way
                refuse_unreadable(batch)
            else:
                yield batch


class _Pictures(Dataset[Tensor | dict[Path, str]]):
    """Batches of pictures by their indices, as a worker process makes them."""

    def __init__(self, examples: FileExamples, preprocessing: Preprocessing, augmenter: Augmenter | None) -> None:
        self._examples, self._preprocessing, self._augmenter = examples, preprocessing, augmenter

    def __getitem__(self, indices: Tensor) -> Tensor | dict[Path, str]:
        pictures: list[Tensor] = []
        problems: dict[Path, str] = {}
        for index in indices:
            try:
                pictures.append(self._read(index))
            except UnreadablePicture as error:
                problems[self._examples.root / self._examples.files[int(index)]] = str(error)
        return problems or torch.cat(pictures)

    def _read(self, index: Tensor) -> Tensor:
        """One picture, uint8 [1, C, side, side]."""
        path, indices = self._examples.root / self._examples.files[int(index)], index.view(1)
        if self._augmenter is None:
            return read_square(path, self._preprocessing)[None]
        if self._augmenter.settings.random_resized_crop:
            window = self._augmenter.resized_crop_windows(indices)[0]
            return self._augmenter.vary(read_window(path, window, self._preprocessing)[None], indices)
        squared = cut_squares(read_square(path, self._preprocessing)[None], indices, self._augmenter)
        return self._augmenter.vary(squared, indices)


def cut_epoch(order: Tensor, batch_size: int) -> list[Tensor]:
    """The epoch's order [N] in batches; a single example left over joins the batch before it.

    Batch normalisation has no statistics of one example, so a last batch of one could not be trained on.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _num_workers() -> int:
    return min(8, num_cores())
