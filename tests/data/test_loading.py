from pathlib import Path

import pytest
import torch
from conftest import NO_PICTURE, make_pictures, small_recipe

from candid.data import loading
from candid.data.catalog import open_data_set
from candid.data.decoding import decode_file
from candid.data.examples import DataSet, FileExamples, StoredExamples, stratified_holdout
from candid.data.loading import EvaluationBatches, TrainingBatches, TrainingData, cut_epoch, open_training_data
from candid.data.preprocessing import with_channels
from candid.data.reading import decode_all
from candid.errors import DataError, InputError
from candid.recipe import Recipe
from candid.training.setup import resolve_recipe

CPU = torch.device("cpu")


def opened(folder: Path, **changes: object) -> tuple[TrainingData, Recipe]:
    data_set = open_data_set(str(folder))
    recipe = resolve_recipe(small_recipe(folder, **changes), data_set, CPU)
    return open_training_data(data_set, recipe), recipe


def streamed(data: TrainingData, folder: Path) -> TrainingData:
    """The same data, its training pictures left on disk."""
    examples = open_data_set(str(folder)).openers["train"]()
    return TrainingData(examples, data.validation, data.preprocessing)


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own(pictures: Path):
    data, recipe = opened(pictures)
    batches = TrainingBatches(data, recipe, 3, CPU)
    first, again, second = (list(batches.epoch(epoch)) for epoch in (0, 0, 1))
    assert sum(len(batch.inputs) for batch in first) == batches.num_examples
    assert len(first) == batches.steps_per_epoch
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].inputs, second[0].inputs)

    def fingerprint(epoch: list) -> list[float]:
        return sorted(float(image.sum()) for batch in epoch for image in batch.inputs)

    assert fingerprint(first) == pytest.approx(fingerprint(second), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation__crop_padding": 3, "augmentation__mirror": True, "augmentation__cutout": 5},
        {"augmentation__color_jitter": 0.3, "augmentation__randaugment": 9},
        {"augmentation__mixup": 0.4, "augmentation__cutmix": 1.0, "augmentation__crop_padding": 2},
    ],
    ids=["plain", "crop", "color", "mix"],
)
def test_streamed_and_stored_pictures_are_the_same(pictures: Path, changes: dict[str, object]):
    data, recipe = opened(pictures, **changes)
    assert isinstance(data.train, StoredExamples)
    stored = list(TrainingBatches(data, recipe, 3, CPU).epoch(0))  # all, so that none is made while workers are forked
    from_disk = TrainingBatches(streamed(data, pictures), recipe, 3, CPU).epoch(0)
    for a, b in zip(stored, from_disk, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_the_first_half_of_the_epochs_shows_smaller_pictures(pictures: Path):
    small = {"training__early_image_size": 20, "training__epochs": 3}
    data, recipe = opened(pictures, model__name="resnet20-cifar", **small)
    batches = TrainingBatches(data, recipe, 3, CPU)
    sides = [{tuple(batch.inputs.shape[2:]) for batch in batches.epoch(epoch)} for epoch in range(3)]
    full = (recipe.data.image_size, recipe.data.image_size)
    assert sides == [{(20, 20)}, {full}, {full}]
    whole = TrainingBatches(data, recipe.replace({"training.early_image_size": 0}), 3, CPU).epoch(0)
    for small_batch, batch in zip(batches.epoch(0), whole, strict=True):
        expected = torch.nn.functional.interpolate(batch.inputs, (20, 20), mode="bilinear", antialias=True)
        assert (small_batch.inputs - expected).abs().max() < 0.05  # of a standard deviation: pixels are whole numbers


@pytest.mark.parametrize(
    ("model", "early", "text"),
    [
        (
            "resnet20-cifar",
            28,
            "training.early_image_size is 28 px; it must be below data.image_size (28 px), or 0 to train at one size.",
        ),
        (
            "lenet-relu",
            20,
            "training.early_image_size is 20 px, but lenet-relu is another network for pictures of that size; it must "
            "be 0 here. Choose a network that ends in a pooling of all pixels.",
        ),
    ],
)
def test_an_early_size_that_cannot_be_is_refused(pictures: Path, model: str, early: int, text: str):
    with pytest.raises(InputError) as caught:
        opened(pictures, model__name=model, data__image_size=28, training__early_image_size=early)
    assert str(caught.value) == text


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_workers_changes_nothing(pictures: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    data, recipe = opened(pictures, augmentation__crop_padding=3, augmentation__randaugment=9)
    expected = list(TrainingBatches(data, recipe, 3, CPU).epoch(2))
    monkeypatch.setattr(loading, "_num_workers", lambda: workers)
    for a, b in zip(TrainingBatches(streamed(data, pictures), recipe, 3, CPU).epoch(2), expected, strict=True):
        assert torch.equal(a.inputs, b.inputs)


def test_batch_size_does_not_change_what_happens_to_an_example(pictures: Path):
    changes = {"augmentation__mirror": True, "augmentation__mixup": 0.4, "augmentation__crop_padding": 2}
    data, recipe = opened(pictures, **changes)
    large = recipe.replace({"training.batch_size": 40})
    a, b = (
        torch.cat([batch.inputs for batch in TrainingBatches(data, each, 3, CPU).epoch(0)]) for each in (recipe, large)
    )
    assert torch.equal(a, b)


def test_large_pictures_are_cut_before_they_are_made_small(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=6, side=120)
    data, recipe = opened(folder, data__image_size=100, augmentation__random_resized_crop=0.2)
    assert isinstance(data.train, FileExamples)
    batch = next(iter(TrainingBatches(data, recipe, 3, CPU).epoch(0)))
    assert batch.inputs.shape[1:] == (3, 100, 100)
    again = next(iter(TrainingBatches(data, recipe, 3, CPU).epoch(0)))
    assert torch.equal(batch.inputs, again.inputs)


def test_pictures_of_another_size_are_resized(pictures: Path):
    data, recipe = opened(pictures, data__image_size=40, augmentation__crop_padding=2)
    batch = next(iter(TrainingBatches(data, recipe, 3, CPU).epoch(0)))
    assert batch.inputs.shape[1:] == (3, 40, 40)


def test_a_named_set_of_another_size_is_resized_batch_by_batch():
    data_set = open_data_set("fashion-mnist-mini")
    recipe = resolve_recipe(Recipe().replace({"data.image_size": 32}), data_set, CPU)
    data = open_training_data(data_set, recipe)
    assert data.train.images.shape[-2:] == (28, 28)
    assert next(iter(TrainingBatches(data, recipe, 10, CPU).epoch(0))).inputs.shape == (64, 1, 32, 32)
    assert next(iter(EvaluationBatches(data.validation, data.preprocessing, CPU)))[0].shape[-2:] == (32, 32)


def test_training_inputs_have_mean_zero_and_deviation_one(pictures: Path):
    data, recipe = opened(pictures)
    inputs = torch.cat([batch.inputs for batch in TrainingBatches(data, recipe, 3, CPU).epoch(0)])
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4


def test_evaluation_sees_every_example_in_order(pictures: Path):
    data, _ = opened(pictures)
    for examples in (data.train, streamed(data, pictures).train):
        inputs, labels = zip(*EvaluationBatches(examples, data.preprocessing, CPU), strict=True)
        assert torch.equal(torch.cat(labels), data.train.labels)
        expected = data.preprocessing(decode_file(pictures / data.train.files[7], 3)[None])
        assert torch.equal(torch.cat(inputs)[7], expected[0])


def test_color_becomes_grey_as_the_decoder_does_it(pictures: Path):
    rgb = open_training_data(*_data_and_recipe(pictures)).train
    grey = open_training_data(*_data_and_recipe(pictures, data__channels=1)).train
    assert grey.images.shape[1] == 1
    converted = with_channels(rgb.images, 1)
    assert (converted.int() - grey.images.int()).abs().max() <= 1


def _data_and_recipe(folder: Path, **changes: object) -> tuple[DataSet, Recipe]:
    data_set = open_data_set(str(folder))
    return data_set, resolve_recipe(small_recipe(folder, **changes), data_set, CPU)


def test_unreadable_pictures_are_listed_and_stop_the_run(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures")
    (folder / "circle" / "03.png").write_bytes(b"")
    (folder / "cross" / "05.png").write_text("text")
    text = (
        "2 pictures cannot be used; expected whole pictures, so replace or remove them, "
        "or go on without by --bad-images skip:\n"
        f"  {folder}/circle/03.png is empty (0 bytes); expected a picture.\n"
        f"  {folder}/cross/05.png cannot be decoded: {NO_PICTURE}"
    )
    files = FileExamples(folder, ("circle/03.png", "cross/05.png", "cross/06.png"), torch.tensor([0, 1, 1]))
    data, recipe = opened(make_pictures(tmp_path / "good"))
    with pytest.raises(DataError) as caught:
        decode_all(files, data.preprocessing)
    assert str(caught.value) == text
    with pytest.raises(DataError) as caught:  # from a worker process, too
        list(TrainingBatches(TrainingData(files, None, data.preprocessing), recipe, 3, CPU).epoch(0))
    assert sorted(str(caught.value).splitlines()) == sorted(text.splitlines())


def test_holding_out_more_than_there_is_is_refused(pictures: Path):
    folder = pictures.parent / "split"
    make_pictures(folder / "train", per_class=5)
    with pytest.raises(InputError) as caught:
        opened(folder, data__validation=15)
    assert str(caught.value) == (
        f"data.validation is 15; it must be below the 15 training examples of {folder}. "
        "Hold out fewer, or a share such as 0.1."
    )


def test_nothing_is_held_out_when_the_recipe_says_so(tmp_path: Path):
    make_pictures(tmp_path / "train", per_class=5)
    data, _ = opened(tmp_path, data__validation=0)
    assert data.validation is None
    assert len(data.train) == 15


def test_holdout_is_stratified_exact_and_a_function_of_the_seed():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    kept, held_out = stratified_holdout(labels, 0.15, seed=3)
    assert torch.bincount(labels[held_out]).tolist() in ([10, 3, 2], [11, 3, 1])
    assert len(held_out) == 15
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(100))
    assert torch.equal(stratified_holdout(labels, 15, seed=3)[1], held_out)
    assert not torch.equal(stratified_holdout(labels, 15, seed=4)[1], held_out)


@pytest.mark.parametrize(("examples", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (8, [4, 4]), (3, [3]), (1, [1])])
def test_no_batch_is_left_with_a_single_example(examples: int, sizes: list[int]):
    assert [len(batch) for batch in cut_epoch(torch.arange(examples), 4)] == sizes
