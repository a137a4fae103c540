"""The cache of decoded folders: the same pixels whether they were kept or not, and whatever became of what was kept."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import draw, make_pictures, small_recipe
from processes import kill, outcome, start

from candid.data import picture_cache, reading
from candid.data.catalog import open_data_set
from candid.data.examples import FileExamples, StoredExamples
from candid.data.loading import EvaluationBatches, TrainingBatches, decode_once, open_training_data
from candid.data.picture_cache import CachedExamples, open_cached
from candid.data.preprocessing import Preprocessing
from candid.data.reading import decode_all
from candid.errors import DataError
from candid.recipe_parts import Data
from candid.training.setup import are_those, hash_examples, resolve_recipe

CPU = torch.device("cpu")
SQUARE = Preprocessing(image_size=20, channels=3, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
ROW_BYTES = 3 * 20 * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache with chunks of at most ten pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(picture_cache, "CHUNK_PICTURES", 10)
    return tmp_path / "cache" / "candid" / "pictures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "own")


def examples(folder: Path) -> FileExamples:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return FileExamples(folder, tuple(files), torch.arange(len(files)))


def opened(folder: Path, preprocessing: Preprocessing = SQUARE) -> CachedExamples:
    found = open_cached(examples(folder), preprocessing)
    assert found is not None
    return found


def read_all(found: CachedExamples) -> torch.Tensor:
    return found.read(torch.arange(len(found)))


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are decoded from here on."""
    decoded: list[Path] = []
    decode = reading.decode_file
    monkeypatch.setattr(reading, "decode_file", lambda path, *rest: (decoded.append(path), decode(path, *rest))[1])
    return decoded


def test_the_second_start_decodes_nothing_and_gives_the_same(cache: Path, folder: Path, monkeypatch):
    first = read_all(opened(folder))
    assert torch.equal(first, decode_all(examples(folder), SQUARE))
    decoded = count_decoded(monkeypatch)
    second = opened(folder)
    assert torch.equal(read_all(second), first)
    assert decoded == []
    order = torch.tensor([70, 3, 41, 3])
    assert torch.equal(second.read(order), first[order])
    assert torch.equal(second.select(order).read(torch.tensor([1, 0])), first[[3, 70]])
    assert all(path.stat().st_size % (ROW_BYTES + 4) == 0 for path in cache.iterdir())


@pytest.mark.parametrize("change", [{"image_size": 21}, {"channels": 1}, {"fit": "pad"}])
def test_other_pixels_are_other_chunks(cache: Path, folder: Path, change: dict[str, object]):
    wide = draw("circle", 0, side=60).resize((60, 30))
    wide.save(folder / "circle" / "00.png")
    read_all(opened(folder))
    other = SQUARE.model_copy(update=change)
    assert torch.equal(read_all(opened(folder, other)), decode_all(examples(folder), other))


def test_a_changed_or_an_added_picture_costs_few_others(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    read_all(opened(folder))
    decoded = count_decoded(monkeypatch)
    draw("circle", 99).save(folder / "circle" / "05.png")
    draw("cross", 99).save(folder / "cross" / "035.png")
    read_all(opened(folder))
    assert {folder / "circle" / "05.png", folder / "cross" / "035.png"} <= set(decoded)
    assert len(decoded) <= 40  # of 73; two chunks of ten, and as many behind them until a picture ends one as before


def test_a_copy_elsewhere_is_known(cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = read_all(opened(folder))
    shutil.copytree(folder, tmp_path / "copy")
    decoded = count_decoded(monkeypatch)
    assert torch.equal(read_all(opened(tmp_path / "copy")), first)
    assert decoded == []


def damage_pixel(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [damage_pixel, lambda path: path.write_bytes(bytes(path.stat().st_size)), lambda path: path.write_bytes(b"x")],
    ids=["bit", "zeros", "short"],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_damaged_chunk_is_found_and_made_anew(cache: Path, folder: Path, damage, is_open: bool):
    found = opened(folder)
    expected = read_all(found)
    chunks = {path: path.read_bytes() for path in cache.iterdir()}
    for path in chunks:
        damage(path)
    assert torch.equal(read_all(found if is_open else opened(folder)), expected)
    assert torch.equal(read_all(opened(folder)), expected)
    assert {path: path.read_bytes() for path in cache.iterdir()} == chunks


def test_chunks_that_another_process_takes_away_are_done_without(cache: Path, folder: Path):
    found = opened(folder)
    expected = read_all(found)
    shutil.rmtree(cache)
    assert torch.equal(read_all(found), expected)
    (folder / "cross" / "05.png").write_bytes(b"")
    (folder / "cross" / "06.png").unlink()
    with pytest.raises(DataError) as caught:
        read_all(found)
    assert str(caught.value) == (
        "2 pictures cannot be used; expected whole pictures, so replace or remove them, "
        "or go on without by --bad-images skip:\n"
        f"  {folder}/cross/05.png is empty (0 bytes); expected a picture.\n"
        f"  {folder}/cross/06.png cannot be read: No such file or directory; expected a picture file."
    )


def test_unreadable_pictures_are_all_listed_and_their_chunks_are_not_kept(cache: Path, folder: Path):
    broken = [folder / "circle" / "03.png", folder / "stripes" / "05.png"]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_cached(examples(folder), SQUARE)
    listed = "".join(f"\n  {path} is empty (0 bytes); expected a picture." for path in broken)
    assert str(caught.value) == (
        "2 pictures cannot be used; expected whole pictures, so replace or remove them, "
        f"or go on without by --bad-images skip:{listed}"
    )
    kept = list(cache.iterdir())
    assert kept
    for path in broken:
        path.unlink()
    opened(folder)
    assert set(kept) <= set(cache.iterdir())


def build_slowly(cache: Path, folder: Path) -> None:
    """In a process of its own: build the cache, waiting at every picture."""
    os.environ["XDG_CACHE_HOME"] = str(cache.parent.parent)
    picture_cache.CHUNK_PICTURES = 10
    decode = reading.decode_file
    reading.decode_file = lambda *arguments: (threading.Event().wait(0.02), decode(*arguments))[1]
    open_cached(examples(folder), SQUARE)


def test_a_killed_build_keeps_its_whole_chunks_and_two_may_build_at_once(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    processes = [start(build_slowly, cache, folder) for _ in range(2)]
    while not cache.is_dir() or len([path for path in cache.iterdir() if len(path.name) == 64]) < 2:
        assert processes[0].exitcode is None
        threading.Event().wait(0.01)
    kill(processes[0])
    kept = {path for path in cache.iterdir() if len(path.name) == 64}
    assert len(kept) >= 2
    assert outcome(processes[1]) == 0
    decoded = count_decoded(monkeypatch)
    found = opened(folder)
    assert decoded == []
    assert torch.equal(read_all(found), decode_all(examples(folder), SQUARE))


def test_those_not_used_for_longest_make_room(cache: Path, folder: Path, tmp_path: Path, monkeypatch):
    other = make_pictures(tmp_path / "other", per_class=12, side=30)
    opened(other)
    old = set(cache.iterdir())
    for path in old:
        os.utime(path, (1, 1))
    spared = max(old)
    os.utime(spared)
    held = sum(path.stat().st_size for path in old)
    needed = len(examples(folder)) * (ROW_BYTES + 4)
    monkeypatch.setattr(picture_cache, "MAX_BYTES", needed + spared.stat().st_size)
    assert held > spared.stat().st_size
    opened(folder)
    assert old & set(cache.iterdir()) == {spared}


def test_without_room_the_pictures_are_read_as_before_and_one_line_says_so(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(picture_cache, "SPARE_BYTES", 2**60)
    stored = decode_once(examples(folder), SQUARE, Data())
    assert isinstance(stored, StoredExamples)
    assert torch.equal(stored.images, decode_all(examples(folder), SQUARE))
    assert isinstance(decode_once(examples(folder), SQUARE, Data(in_memory=False)), FileExamples)
    line = (
        f"The pictures are decoded each time, and not kept in {cache}: they take 0 MiB, and there is room for 0 MiB.\n"
    )
    assert capsys.readouterr().err == line * 2
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_done_without(cache: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    cache.parent.parent.write_text("a file where the folder should be")
    assert isinstance(decode_once(examples(folder), SQUARE, Data()), StoredExamples)
    assert capsys.readouterr().err == (
        f"The pictures are decoded each time, and not kept in {cache}: {cache} cannot be used (Not a directory).\n"
    )


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(cache: Path, folder: Path, monkeypatch):
    decode = reading.decode_file

    def change(path: Path, *rest: object) -> torch.Tensor:
        if path.name == "03.png":
            draw("circle", 77).save(path)
        return decode(path, *rest)

    monkeypatch.setattr(reading, "decode_file", change)
    opened(folder)
    monkeypatch.setattr(reading, "decode_file", decode)
    assert torch.equal(read_all(opened(folder)), decode_all(examples(folder), SQUARE))


@pytest.mark.parametrize("side", [28, 40])
def test_cached_streamed_and_stored_pictures_are_the_same(cache: Path, folder: Path, side: int, monkeypatch):
    changes = {"augmentation__crop_padding": 3, "augmentation__randaugment": 9, "augmentation__mixup": 0.4}
    data_set = open_data_set(str(folder))
    batches: dict[str, list] = {}
    for name, in_memory, most in (("stored", True, 2**30), ("cached", False, 2**30), ("streamed", False, 0)):
        monkeypatch.setattr(picture_cache, "MAX_BYTES", most)
        recipe = small_recipe(folder, data__image_size=side, data__in_memory=in_memory, **changes)
        data = open_training_data(data_set, resolve_recipe(recipe, data_set, CPU))
        assert type(data.train).__name__ == {"stored": "StoredExamples", "cached": "CachedExamples"}.get(
            name, "FileExamples"
        )
        training = TrainingBatches(data, recipe.replace({"data.channels": 3}), 3, CPU).epoch(1)
        evaluation = EvaluationBatches(data.validation, data.preprocessing, CPU)
        batches[name] = [
            *(part for batch in training for part in batch),
            *(part for pair in evaluation for part in pair),
        ]
    for other in ("cached", "streamed"):
        assert all(torch.equal(a, b) for a, b in zip(batches["stored"], batches[other], strict=True))


def test_windows_of_whole_pictures_are_not_cut_from_small_ones(cache: Path, folder: Path):
    data_set = open_data_set(str(folder))
    changes = {"data__image_size": 20, "data__in_memory": False, "augmentation__random_resized_crop": 0.3}
    data = open_training_data(data_set, resolve_recipe(small_recipe(folder, **changes), data_set, CPU))
    assert type(data.train) is FileExamples
    assert isinstance(data.validation, CachedExamples)


def test_training_data_is_known_by_its_contents_however_much_was_known_before(cache: Path, folder: Path):
    unknown, known = examples(folder), opened(folder)
    by_sizes, by_contents = hash_examples(unknown), hash_examples(known)
    assert by_sizes != by_contents
    assert all(are_those(each, sha256) for each in (unknown, known) for sha256 in (by_sizes, by_contents))
    path = folder / "circle" / "03.png"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")  # of the same size
    assert not are_those(examples(folder), by_contents)
    assert not are_those(opened(folder), by_contents)
