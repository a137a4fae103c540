import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import torch

from candid.data import fashion_mnist_mini
from candid.data.catalog import (
    CATALOG,
    CatalogEntry,
    Source,
    open_data_set,
    open_entry,
)
from candid.data.download import Archive
from candid.data.examples import DataSet, StoredExamples
from candid.data.fashion_mnist_mini import make
from candid.data.formats import read_idx
from candid.errors import DataError, InputError

NOWHERE = "http://127.0.0.1:9/"
HERE = Path(fashion_mnist_mini.__file__).parent

needs_fashion_mnist = pytest.mark.skipif(
    not make.SOURCE.is_dir(), reason=f"Debian's package dataset-fashion-mnist is not in {make.SOURCE}"
)


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CANDID_DATA", raising=False)


def idx(shape: tuple[int, ...], value: int, compression: int = 9) -> bytes:
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    size = int(torch.tensor(shape).prod())
    return gzip.compress(header + bytes([value]) * size, compression, mtime=0)


FILES = {
    "train-images.gz": idx((3, 28, 28), 7),
    "train-labels.gz": idx((3,), 1),
    "test-images.gz": idx((2, 28, 28), 9),
    "test-labels.gz": idx((2,), 0),
}
ENTRY = CatalogEntry(
    name="tiny",
    origin="this test",
    terms="none",
    class_names=("zero", "one"),
    channels=1,
    image_size=28,
    sizes={"train": 3, "test": 2},
    sources={
        "train": Source(read_idx, ("train-images.gz", "train-labels.gz")),
        "test": Source(read_idx, ("test-images.gz", "test-labels.gz")),
    },
    archives=tuple(
        Archive(file, hashlib.sha256(data).hexdigest(), len(data), (NOWHERE + file,)) for file, data in FILES.items()
    ),
    folder="tiny",
    unusable={"tiny-python.tar.gz": "it holds Python pickles"},
    validation=0.2,
    mean=(0.5,),
    std=(0.25,),
)


def put_files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or FILES:
        (folder / name).write_bytes(FILES[name])


def open_tiny(tmp_path: Path, data_dir: Path | None = None) -> DataSet:
    return open_entry(ENTRY, data_dir, system_folder=tmp_path / "system")


@pytest.mark.parametrize(
    "place", ["given/tiny", "given", "variable/tiny", "variable", "system/tiny", "cache/candid/tiny"]
)
def test_files_are_found_in_every_place(tmp_path, monkeypatch, place):
    monkeypatch.setenv("CANDID_DATA", str(tmp_path / "variable"))
    put_files(tmp_path / place)
    data_set = open_tiny(tmp_path, tmp_path / "given")
    train, test = data_set.openers["train"](), data_set.openers["test"]()
    assert isinstance(train, StoredExamples)
    assert isinstance(test, StoredExamples)
    assert train.images.shape == (3, 1, 28, 28)
    assert (train.images == 7).all()
    assert train.labels.tolist() == [1, 1, 1]
    assert train.files == ("train/00000", "train/00001", "train/00002")
    assert test.files == ("test/00000", "test/00001")
    assert (data_set.name, data_set.class_names, data_set.channels) == ("tiny", ("zero", "one"), 1)
    assert (data_set.image_size, data_set.validation, data_set.mean, data_set.std) == (28, 0.2, (0.5,), (0.25,))


def test_files_of_one_data_set_may_lie_in_different_places(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDID_DATA", str(tmp_path / "variable"))
    places = ["given", "variable/tiny", "system/tiny", "cache/candid/tiny"]
    for name, place in zip(FILES, places, strict=True):
        put_files(tmp_path / place, name)
    assert len(open_tiny(tmp_path, tmp_path / "given").openers["train"]()) == 3


@pytest.mark.parametrize("place", ["given/tiny", "given", "variable/tiny", "cache/candid/tiny"])
def test_a_damaged_file_is_named_before_anything_is_read(tmp_path, monkeypatch, place):
    monkeypatch.setenv("CANDID_DATA", str(tmp_path / "variable"))
    put_files(tmp_path / place)
    path = tmp_path / place / "test-labels.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        open_tiny(tmp_path, tmp_path / "given")
    given = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = hashlib.sha256(FILES["test-labels.gz"]).hexdigest()
    assert str(caught.value) == (
        f"{path} is damaged or another file: its SHA-256 is {given}, expected {expected}. "
        "Delete it and let candid download it again."
    )


def test_earlier_places_come_first(tmp_path):
    put_files(tmp_path / "given")
    for later in ("system/tiny", "cache/candid/tiny"):
        put_files(tmp_path / later)
        (tmp_path / later / "train-images.gz").write_bytes(b"damaged")
    assert len(open_tiny(tmp_path, tmp_path / "given").openers["train"]()) == 3


def test_a_file_of_another_data_set_with_the_same_name_is_passed_over(tmp_path):
    shipped = HERE / "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "test-labels.gz").write_bytes(shipped.read_bytes())
    put_files(tmp_path / "cache" / "candid" / "tiny")
    assert len(open_tiny(tmp_path, tmp_path / "given").openers["test"]()) == 2


def test_debians_files_may_be_compressed_otherwise_but_must_hold_the_same(tmp_path):
    put_files(tmp_path / "system" / "tiny")
    path = tmp_path / "system" / "tiny" / "test-labels.gz"
    path.write_bytes(idx((2,), 0, compression=1))
    assert len(open_tiny(tmp_path).openers["test"]()) == 2
    path.write_bytes(idx((1,), 0))
    with pytest.raises(DataError) as caught:
        open_tiny(tmp_path).openers["test"]()
    assert str(caught.value) == (f"{path} unpacks to 9 bytes; expected 10. Delete it and let candid download it again.")


def test_opening_a_split_does_not_read_the_other(tmp_path):
    put_files(tmp_path / "given")
    data_set = open_tiny(tmp_path, tmp_path / "given")
    for name in ("test-images.gz", "test-labels.gz"):
        (tmp_path / "given" / name).unlink()
    assert len(data_set.openers["train"]()) == 3
    with pytest.raises(DataError) as caught:
        data_set.openers["test"]()
    assert str(caught.value) == (
        f"{tmp_path}/given/test-images.gz cannot be unpacked: No such file or directory; expected a whole archive. "
        "Delete it and let candid download it again."
    )


def test_without_files_and_network_the_text_says_what_to_put_where(tmp_path):
    put_files(tmp_path / "given", "train-images.gz")
    (tmp_path / "given" / "tiny-python.tar.gz").touch()
    with pytest.raises(DataError) as caught:
        open_tiny(tmp_path, tmp_path / "given")
    assert str(caught.value) == (
        "train-labels.gz could not be downloaded:\n"
        f"  {NOWHERE}train-labels.gz: Connection refused\n"
        "Without a connection, use another way to bring the files, and put them into "
        f"{tmp_path}/cache/candid/tiny, or into a folder that you name with --data-dir: "
        "train-labels.gz, test-images.gz, test-labels.gz\n"
        f"{tmp_path}/given/tiny-python.tar.gz cannot be used: it holds Python pickles. "
        "The binary version, train-images.gz, is needed."
    )


def test_a_name_that_is_nearly_right_gets_the_nearest_names():
    with pytest.raises(InputError) as caught:
        open_data_set("fashion-mnst")
    assert str(caught.value) == ("No data set or folder is called 'fashion-mnst'. Did you mean fashion-mnist?")
    with pytest.raises(InputError) as caught:
        open_data_set("/no/such/folder")
    assert str(caught.value) == (
        "No data set or folder is called '/no/such/folder'. `candid datasets` shows all names."
    )


def put_pictures(folder: Path, *splits: str) -> None:
    from PIL import Image

    for split in splits:
        for index, class_name in enumerate(("cat", "dog")):
            (folder / split / class_name).mkdir(parents=True)
            picture = Image.new("RGB", (8, 8), (index * 200, 0, 0))
            picture.save(folder / split / class_name / f"{split}.png")


def test_a_folder_is_a_data_set(tmp_path):
    put_pictures(tmp_path / "pets", "train", "test")
    assert open_data_set(str(tmp_path / "pets")).class_names == ("cat", "dog")


@pytest.mark.parametrize("place", ["given/imagenet", "given", "cache/candid/imagenet"])
def test_imagenets_validation_pictures_are_its_test_split(tmp_path, place):
    put_pictures(tmp_path / place, "train", "val")
    (tmp_path / "given").mkdir(exist_ok=True)
    data_set = open_data_set("imagenet", tmp_path / "given")
    assert data_set.name == "imagenet"
    assert data_set.class_names == ("cat", "dog")
    assert data_set.mean == (0.485, 0.456, 0.406)
    assert sorted(data_set.openers) == ["test", "train"]
    assert data_set.openers["test"]().files == ("val/cat/val.png", "val/dog/val.png")


def test_imagenet_cannot_be_downloaded(tmp_path):
    with pytest.raises(DataError) as caught:
        open_entry(CATALOG["imagenet"], system_folder=tmp_path)
    folder = tmp_path / "cache" / "candid" / "imagenet"
    assert str(caught.value) == (
        "candid cannot download imagenet (terms: non-commercial research and education, on request at "
        f"https://image-net.org). Expected its pictures in {folder}/train/CLASS and {folder}/val/CLASS, or in "
        "folders named so in a folder that you name with --data-dir; val becomes the test split."
    )


def test_the_built_in_data_set_needs_neither_network_nor_folder():
    data_set = open_data_set("fashion-mnist-mini")
    train, test = data_set.openers["train"](), data_set.openers["test"]()
    assert train.labels.bincount().tolist() == [600] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert isinstance(train, StoredExamples)
    assert_statistics(data_set, train)


def assert_statistics(data_set: DataSet, train: StoredExamples) -> None:
    pixels = train.images.double() / 255
    assert data_set.mean == (round(float(pixels.mean()), 4),)
    assert data_set.std == (round(float(pixels.std(correction=0)), 4),)


def test_the_built_in_files_are_small_and_carry_their_licence():
    sizes = {path.name: path.stat().st_size for path in HERE.glob("*.gz")}
    assert sizes == {archive.file: archive.size for archive in CATALOG["fashion-mnist-mini"].archives}
    assert sum(sizes.values()) < 4_000_000
    assert "Copyright (c) 2017 Zalando SE" in (HERE / "LICENSE").read_text()


@needs_fashion_mnist
def test_the_built_in_files_can_be_made_again():
    made = make.make()
    assert sorted(f"{name}.gz" for name in made) == sorted(path.name for path in HERE.glob("*.gz"))
    for name, contents in made.items():
        # What is inside is compared: other versions of zlib compress the same bytes otherwise.
        assert gzip.decompress((HERE / f"{name}.gz").read_bytes()) == contents, name


@needs_fashion_mnist
def test_fashion_mnist_comes_from_debians_package():
    data_set = open_data_set("fashion-mnist")
    train, test = data_set.openers["train"](), data_set.openers["test"]()
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert isinstance(train, StoredExamples)
    assert_statistics(data_set, train)


def test_the_built_in_data_set_is_first():
    assert list(CATALOG)[0] == "fashion-mnist-mini"
    others = {"fashion-mnist", "mnist", "cifar10", "cifar100", "svhn", "svhn-extra", "imagenet"}
    assert set(list(CATALOG)[1:]) == others


@pytest.mark.parametrize("entry", [CATALOG[name] for name in list(CATALOG)], ids=list(CATALOG))
def test_every_entry_is_complete(entry):
    assert entry.origin
    assert entry.terms
    assert set(entry.sizes) == {"train", "test"}
    assert len(entry.mean) == len(entry.std) == entry.channels
    if not entry.sources:
        return
    used = {file for source in entry.sources.values() for file in source.files}
    assert used == {archive.file for archive in entry.archives}
    assert len(set(entry.class_names)) == (100 if entry.name == "cifar100" else 10)
    for archive in entry.archives:
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert bool(archive.mirrors) != bool(entry.shipped_in)
        assert all(address.endswith(f"/{archive.file}") for address in archive.mirrors)
    assert entry.download_bytes == sum(archive.size for archive in entry.archives if archive.mirrors)
