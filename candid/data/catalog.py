"""The data sets candid knows by name: where they come from, on what terms, and how to open them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from candid.data.download import Archive, DownloadError, fetch, sha256_of, wrong_file
from candid.data.examples import DataSet, Split, StoredExamples
from candid.data.formats import Reader, read_cifar, read_idx, read_svhn
from candid.durable import cache_folder
from candid.errors import DataError, InputError, did_you_mean

SYSTEM_FOLDER = Path("/usr/share/datasets")
"""Where Debian's packages put data sets."""


@dataclass(frozen=True)
class Source:
    """The files of a split and what reads them."""

    read: Reader
    files: tuple[str, ...]
    """In the order in which `read` takes them."""


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A data set that has a name: all that is known about it without having it."""

    name: str
    origin: str
    terms: str
    """The licence, or what the authors ask for where they name none."""
    class_names: tuple[str, ...] = ()
    """Position = index of the class; empty where the folders name the classes."""
    channels: Literal[1, 3]
    image_size: int | None
    """Side of the pictures in px where all are square and of one size."""
    sizes: Mapping[Split, int]
    """Number of pictures in each split."""
    sources: Mapping[Split, Source] = field(default_factory=dict[Split, Source])
    """Empty for a data set that is a folder of pictures, which the user must bring."""
    archives: tuple[Archive, ...] = ()
    folder: str
    """The folder of its files in the cache and in the user's folder of data sets."""
    shipped_in: Path | None = None
    """The folder of its files where they ship with candid."""
    unusable: Mapping[str, str] = field(default_factory=dict[str, str])
    """Files that people have instead of the right ones, and why they are not the right ones."""
    validation: float = 0.1
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def download_bytes(self) -> int:
        """The size of all archives, or 0 where nothing is downloaded."""
        return sum(archive.size for archive in self.archives if archive.mirrors)


def _archives(mirrors: Sequence[str], *known: tuple[str, int, str]) -> tuple[Archive, ...]:
    """The archives of these file names, sizes and SHA-256; a mirror is what stands before the file name."""
    return tuple(Archive(file, sha, size, tuple(m + file for m in mirrors)) for file, size, sha in known)


# One line for each thing that is known, so that two data sets can be compared line by line.
# fmt: off
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
IDX_FILES: Mapping[Split, Source] = {
    "train": Source(read_idx, (TRAIN_IMAGES, TRAIN_LABELS)),
    "test": Source(read_idx, (TEST_IMAGES, TEST_LABELS)),
}
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR10_FILE, CIFAR100_FILE = "cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"
CIFAR10_TRAIN = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
TORONTO = "https://www.cs.toronto.edu/~kriz/"
PICKLED = "it holds Python pickles, which can run code when they are opened"
MATLAB = "it is the Matlab version, which candid does not read"
SVHN_TRAIN, SVHN_TEST, SVHN_EXTRA = _archives(
    ["http://ufldl.stanford.edu/housenumbers/"],
    ("train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    ("test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    ("extra_32x32.mat", 1_329_278_602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
)

FASHION_MNIST = CatalogEntry(
    name="fashion-mnist", folder="fashion-mnist",
    origin="Xiao, Rasul and Vollgraf 2017, Fashion-MNIST (arXiv:1708.07747)",
    terms="MIT, Copyright (c) 2017 Zalando SE",
    class_names=CLOTHES, channels=1, image_size=28, mean=(0.2860,), std=(0.3530,),
    sizes={"train": 60_000, "test": 10_000}, sources=IDX_FILES,
    archives=_archives(
        ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
         "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"],
        (TRAIN_IMAGES, 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (TRAIN_LABELS, 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (TEST_IMAGES, 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (TEST_LABELS, 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)
FASHION_MNIST_MINI = replace(
    FASHION_MNIST, name="fashion-mnist-mini", folder="fashion-mnist-mini",
    shipped_in=Path(__file__).parent / "fashion_mnist_mini",
    origin=f"600 training and 100 test pictures of each class of {FASHION_MNIST.origin}",
    mean=(0.2874,), std=(0.3535,), sizes={"train": 6_000, "test": 1_000},
    archives=_archives(
        [],
        (TRAIN_IMAGES, 2_625_523, "813dfa1cb6739ac34a30426acee0b0c40059a02647520e67b10211d4166ccd99"),
        (TRAIN_LABELS, 3_073, "860cb6f0e73c88025c4ae13279c69217d591d8804a20c8a7831c1afe03921df0"),
        (TEST_IMAGES, 438_270, "9f1ef3d35f1d0f81ba6a0d4289106f5cbd7db74a639916d6fb1502babd58e22c"),
        (TEST_LABELS, 524, "774adac97addef0a7be5f3f87196be01f038eeb383077acb273bf1e34d385c1a"),
    ),
)
MNIST = CatalogEntry(
    name="mnist", folder="mnist",
    origin="LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition",
    terms="copyright Yann LeCun and Corinna Cortes; commonly passed on under CC BY-SA 3.0",
    class_names=DIGITS, channels=1, image_size=28, mean=(0.1307,), std=(0.3081,),
    sizes={"train": 60_000, "test": 10_000}, sources=IDX_FILES,
    archives=_archives(
        ["https://ossci-datasets.s3.amazonaws.com/mnist/",
         "https://storage.googleapis.com/cvdf-datasets/mnist/"],
        (TRAIN_IMAGES, 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (TRAIN_LABELS, 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (TEST_IMAGES, 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (TEST_LABELS, 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)
CIFAR10 = CatalogEntry(
    name="cifar10", folder="cifar10",
    origin="Krizhevsky 2009, Learning multiple layers of features from tiny images",
    terms="no licence stated; the author asks to cite the technical report",
    class_names=CIFAR10_CLASSES, channels=3, image_size=32,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), validation=5_000,
    sizes={"train": 50_000, "test": 10_000},
    sources={
        "train": Source(partial(read_cifar, members=CIFAR10_TRAIN), (CIFAR10_FILE,)),
        "test": Source(partial(read_cifar, members=["cifar-10-batches-bin/test_batch.bin"]), (CIFAR10_FILE,)),
    },
    archives=_archives(
        [TORONTO, "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"],
        (CIFAR10_FILE, 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ),
    unusable={"cifar-10-python.tar.gz": PICKLED, "cifar-10-matlab.tar.gz": MATLAB},
)
CIFAR100 = replace(
    CIFAR10, name="cifar100", folder="cifar100", class_names=tuple(CIFAR100_CLASSES.split()),
    mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    sources={
        split: Source(partial(read_cifar, members=[member], label_bytes=2), (CIFAR100_FILE,))
        for split, member in (("train", "cifar-100-binary/train.bin"), ("test", "cifar-100-binary/test.bin"))
    },
    archives=_archives(
        [TORONTO],
        (CIFAR100_FILE, 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    ),
    unusable={"cifar-100-python.tar.gz": PICKLED, "cifar-100-matlab.tar.gz": MATLAB},
)
SVHN = CatalogEntry(
    name="svhn", folder="svhn",
    origin="Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning",
    terms="for non-commercial use only",
    class_names=DIGITS, channels=3, image_size=32,
    mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), validation=6_000,
    sizes={"train": 73_257, "test": 26_032},
    sources={"train": Source(read_svhn, (SVHN_TRAIN.file,)), "test": Source(read_svhn, (SVHN_TEST.file,))},
    archives=(SVHN_TRAIN, SVHN_TEST),
)
SVHN_WITH_EXTRA = replace(
    SVHN, name="svhn-extra",
    origin=f"{SVHN.origin}; the 531,131 extra pictures are in the training split",
    sizes={"train": 73_257 + 531_131, "test": 26_032},
    sources={**SVHN.sources, "train": Source(read_svhn, (SVHN_TRAIN.file, SVHN_EXTRA.file))},
    archives=(SVHN_TRAIN, SVHN_TEST, SVHN_EXTRA),
)
IMAGENET = CatalogEntry(
    name="imagenet", folder="imagenet",
    origin="Russakovsky et al. 2015, ImageNet large scale visual recognition challenge (ILSVRC 2012)",
    terms="non-commercial research and education, on request at https://image-net.org",
    channels=3, image_size=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    sizes={"train": 1_281_167, "test": 50_000},
)
ALL = (FASHION_MNIST_MINI, FASHION_MNIST, MNIST, CIFAR10, CIFAR100, SVHN, SVHN_WITH_EXTRA, IMAGENET)
# fmt: on
CATALOG: Mapping[str, CatalogEntry] = {entry.name: entry for entry in ALL}
SHA256_OF_OTHERS = {archive.sha256 for entry in ALL for archive in entry.archives}


def full_name(name_or_folder: str) -> str:
    """What finds the same data set from any working folder: a catalog name, else the folder's absolute path."""
    return name_or_folder if name_or_folder in CATALOG else str(Path(name_or_folder).expanduser().resolve())


def open_data_set(name_or_folder: str, data_dir: Path | None = None) -> DataSet:
    """The data set of that name, else the one in that folder; every file it needs is there and right.

    Files are looked for in `data_dir`, $CANDID_DATA, Debian's /usr/share/datasets and the cache, and then
    downloaded into the cache. A folder that has the name of a data set is opened as ./NAME.
    """
    if not name_or_folder:
        raise InputError("No data set is named; expected one that `candid datasets` shows, or a folder. Use --data.")
    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise InputError(f"{data_dir} is not a folder; expected the one that holds your data sets (--data-dir).")
    if name_or_folder in CATALOG:
        return open_entry(CATALOG[name_or_folder], data_dir)
    from candid.data.folders import open_folder  # the catalog's own data needs no picture decoder

    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return open_folder(folder)
    advice = did_you_mean(name_or_folder, CATALOG, otherwise="`candid datasets` shows all names.")
    raise InputError(f"No data set or folder is called {name_or_folder!r}. {advice}")


def open_entry(entry: CatalogEntry, data_dir: Path | None = None, system_folder: Path = SYSTEM_FOLDER) -> DataSet:
    """The data set that `entry` describes, found as `open_data_set` says; pictures are not read yet."""
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("CANDID_DATA")) if root]
    places = [entry.shipped_in] if entry.shipped_in else []
    places += [place for root in roots for place in (root / entry.folder, root)]
    cache = cache_folder() / entry.folder
    if not entry.sources:
        return _open_pictures(entry, [*places, system_folder / entry.folder, cache])
    paths = _find_archives(entry, places, system_folder / entry.folder, cache)
    return DataSet(
        name=entry.name,
        class_names=entry.class_names,
        channels=entry.channels,
        image_size=entry.image_size,
        openers={split: partial(_read_split, entry, split, paths) for split in entry.sources},
        validation=entry.validation,
        mean=entry.mean,
        std=entry.std,
    )


def _read_split(entry: CatalogEntry, split: Split, paths: Mapping[str, Path]) -> StoredExamples:
    source, count = entry.sources[split], entry.sizes[split]
    images, labels = source.read([paths[file] for file in source.files], count, len(entry.class_names))
    return StoredExamples(images, labels, tuple(f"{split}/{index:05d}" for index in range(count)))


def _find_archives(entry: CatalogEntry, places: Sequence[Path], system: Path, cache: Path) -> dict[str, Path]:
    """Where every archive of `entry` is, by file name, after what is missing has been downloaded."""
    found = {archive.file: _find_archive(archive, places, system) for archive in entry.archives}
    missing = [archive for archive in entry.archives if found[archive.file] is None]
    try:
        downloaded = {path.name: path for path in fetch(missing, cache)}
    except DownloadError as error:
        raise DataError("\n".join([str(error), *_wrong_versions(entry, [*places, cache])])) from error
    return downloaded | {file: path for file, path in found.items() if path}


def _find_archive(archive: Archive, places: Sequence[Path], system: Path) -> Path | None:
    for path in (place / archive.file for place in places):
        sha256 = sha256_of(path) if path.is_file() else None
        if sha256 == archive.sha256:
            return path
        # Several data sets use the same file names, so what lies here may be right for another one.
        if sha256 and sha256 not in SHA256_OF_OTHERS:
            raise wrong_file(path, archive, sha256)
    # Debian compresses the files again, so their SHA-256 is another; what they unpack to is checked.
    path = system / archive.file
    return path if path.is_file() else None


def _wrong_versions(entry: CatalogEntry, places: Sequence[Path]) -> list[str]:
    return [
        f"{place / file} cannot be used: {reason}. The binary version, {entry.archives[0].file}, is needed."
        for place in places
        for file, reason in entry.unusable.items()
        if (place / file).is_file()
    ]


def _open_pictures(entry: CatalogEntry, places: Sequence[Path]) -> DataSet:
    """A data set whose pictures the user brought as train/<class> and val/<class>; val is the test split."""
    from candid.data.folders import open_folder

    for place in places:
        if (place / "train").is_dir() and (place / "val").is_dir():
            pictures = open_folder(place)
            openers = {"train": pictures.openers["train"], "test": pictures.openers["validation"]}
            return replace(pictures, name=entry.name, openers=openers, mean=entry.mean, std=entry.std)
    raise DataError(
        f"candid cannot download {entry.name} (terms: {entry.terms}). Expected its pictures in "
        f"{places[-1]}/train/CLASS and {places[-1]}/val/CLASS, or in folders named so "
        "in a folder that you name with --data-dir; val becomes the test split."
    )
