"""Files of the classic data sets -> pictures and labels.

N images, C channels, H W px. Every reader takes the number of examples and of classes that a split is known
to have and refuses anything else, so no file can unpack to more than that. Archives are read in memory by
the names of their members: nothing is extracted to disk. None of these formats needs pickle.
"""

import gzip
import importlib
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from candid.errors import DataError

Reader = Callable[[Sequence[Path], int, int], tuple[Tensor, Tensor]]
"""(files, number of examples, number of classes) -> images uint8 [N, C, H, W], labels int64 [N]."""

CIFAR_SIDE_PX = 32
CIFAR_IMAGE_BYTES = 3 * CIFAR_SIDE_PX * CIFAR_SIDE_PX
LARGEST_CIFAR_BYTES = 60_000 * (2 + CIFAR_IMAGE_BYTES) + 2**20
"""All records of CIFAR-100, the larger one, and room for the tar headers and text files."""


def read_idx(paths: Sequence[Path], count: int, num_classes: int, *, side: int = 28) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, side, side] and labels int64 [N] of two gzipped IDX files: images, labels."""
    images_path, labels_path = paths
    images = _read_idx_array(images_path, (count, side, side))  # [N, H, W]
    labels = _read_idx_array(labels_path, (count,)).long()  # [N]
    _check_labels(labels_path, labels, 0, num_classes - 1)
    return images.unsqueeze(1), labels  # [N, 1, H, W], [N]


def read_cifar(
    paths: Sequence[Path],
    count: int,
    num_classes: int,
    *,
    members: Sequence[str],
    label_bytes: int = 1,
    largest_bytes: int = LARGEST_CIFAR_BYTES,
) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of the binary version of CIFAR-10 or CIFAR-100.

    `members` are the files inside the .tar.gz, each with the same share of `count`, in the order of the
    result. A record is `label_bytes` labels, of which the last one is meant (CIFAR-100: coarse, fine), and
    the picture. `largest_bytes` bounds what the whole archive may unpack to.
    """
    (path,) = paths
    record_bytes = label_bytes + CIFAR_IMAGE_BYTES
    data = _read_tar_members(path, members, count // len(members) * record_bytes, largest_bytes)
    records = torch.frombuffer(data, dtype=torch.uint8).view(count, record_bytes)
    labels = records[:, label_bytes - 1].long()  # [N]
    _check_labels(path, labels, 0, num_classes - 1)
    images = records[:, label_bytes:].contiguous().view(count, 3, CIFAR_SIDE_PX, CIFAR_SIDE_PX)
    return images, labels


def read_svhn(paths: Sequence[Path], count: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of SVHN's cropped digits, one file after the other.

    The files write the digit 0 as label 10; here it is 0.
    """
    counts = [_svhn_count(path, largest=count) for path in paths]
    if sum(counts) != count:
        files = " with ".join(map(str, paths))
        raise _damaged(files, f"holds {sum(counts)} pictures; expected {count}.")
    parts = [_read_svhn_file(path, num_classes) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _read_idx_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)  # 8: unsigned bytes
    data = _unpack(path, len(header) + int(np.prod(shape)))
    if not data.startswith(header):
        raise _damaged(
            path,
            f"starts with {data[: len(header)].hex(' ', 4)}; expected {header.hex(' ', 4)}, "
            f"the IDX header of {' x '.join(map(str, shape))} bytes.",
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=len(header)).view(shape)


def _unpack(path: Path, num_bytes: int) -> bytes:
    """The gzipped file's contents, which must be `num_bytes` long; never unpacks more than one byte more."""
    try:
        with gzip.open(path) as file:
            data = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"cannot be unpacked: {_reason(error)}; expected a whole archive.") from error
    if len(data) > num_bytes:
        raise _damaged(path, f"unpacks to more than the {num_bytes} bytes expected.")
    if len(data) < num_bytes:
        raise _damaged(path, f"unpacks to {len(data)} bytes; expected {num_bytes}.")
    return data


class _BoundedGzip(gzip.GzipFile):
    """A gzipped file that refuses to unpack to more than it may."""

    def __init__(self, path: Path, largest_bytes: int) -> None:
        super().__init__(path, "rb")
        self.path = path
        self.largest_bytes = largest_bytes

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self.largest_bytes:
            raise _damaged(self.path, f"unpacks to more than the {self.largest_bytes} bytes expected.")
        return data


def _read_tar_members(path: Path, names: Sequence[str], num_bytes: int, largest_bytes: int) -> bytearray:
    """The contents of the members called `names`, `num_bytes` each, joined in the order of `names`."""
    found: dict[str, bytes] = {}
    try:
        with (
            _BoundedGzip(path, largest_bytes) as unpacked,
            # "r|" never seeks, so the bound above counts every byte that is unpacked.
            tarfile.open(fileobj=unpacked, mode="r|") as archive,
        ):
            for member in archive:
                if member.name in names:
                    found[member.name] = _read_member(path, archive, member, num_bytes)
                if len(found) == len(names):
                    break
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _damaged(path, f"cannot be unpacked: {_reason(error)}; expected a whole archive.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise _damaged(path, f"lacks {', '.join(missing)}; expected every file of the data set.")
    return bytearray().join(found[name] for name in names)


def _read_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    contents = archive.extractfile(member) if member.isreg() and member.size == num_bytes else None
    if contents is None:
        kind = f"a file of {member.size} bytes" if member.isreg() else "not a plain file"
        raise _damaged(path, f"has {member.name}, which is {kind}; expected a file of {num_bytes} bytes.")
    return contents.read()


def _svhn_count(path: Path, largest: int) -> int:
    """How many pictures the file says it holds, at most `largest`; reads its headers only."""
    whosmat = _scipy_io().whosmat
    try:
        headers: list[tuple[str, tuple[int, ...], str]] = whosmat(path)
    except Exception as error:  # scipy's parser fails in many ways on bytes that are no Matlab file
        raise _damaged(path, f"cannot be read: {_reason(error)}; expected a Matlab file.") from error
    shapes = {name: shape for name, shape, _ in headers}
    count = shapes.get("y", (0, 0))[0]
    expected = {"X": (CIFAR_SIDE_PX, CIFAR_SIDE_PX, 3, count), "y": (count, 1)}
    if shapes != expected or not 0 < count <= largest:
        raise _damaged(path, f"holds {shapes}; expected X (32, 32, 3, N) and y (N, 1) with N up to {largest}.")
    return count


def _read_svhn_file(path: Path, num_classes: int) -> tuple[Tensor, Tensor]:
    loadmat = _scipy_io().loadmat
    try:
        arrays: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # as above
        raise _damaged(path, f"cannot be read: {_reason(error)}; expected a Matlab file.") from error
    images = torch.as_tensor(np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1)))  # from [H, W, C, N]
    labels = torch.as_tensor(arrays["y"].astype(np.int64)).flatten()  # from [N, 1]
    if images.dtype != torch.uint8:
        raise _damaged(path, f"holds pictures of type {images.dtype}; expected torch.uint8.")
    _check_labels(path, labels, 1, num_classes)
    return images, labels % num_classes


def _scipy_io() -> Any:
    try:
        return importlib.import_module("scipy.io")
    except ImportError as error:
        raise DataError(
            "SVHN's files are Matlab files, and scipy, which reads them, is not installed. "
            "Install it with: pip install candid-vision[svhn]"
        ) from error


def _check_labels(path: Path, labels: Tensor, lowest: int, highest: int) -> None:
    given = int(labels.min()), int(labels.max())
    if given[0] < lowest or given[1] > highest:
        raise _damaged(path, f"holds labels from {given[0]} to {given[1]}; expected them from {lowest} to {highest}.")


def _damaged(path: Path | str, what: str) -> DataError:
    return DataError(f"{path} {what} Delete it and let candid download it again.")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
