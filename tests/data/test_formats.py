import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from candid.data import formats
from candid.data.formats import read_cifar, read_idx, read_svhn
from candid.errors import DataError

REMEDY = "Delete it and let candid download it again."


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def idx(array: torch.Tensor) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


IMAGES = noise(5, 4, 4)
LABELS = torch.tensor([0, 2, 1, 2, 0], dtype=torch.uint8)


def idx_files(folder: Path, images: bytes = idx(IMAGES), labels: bytes = idx(LABELS)) -> list[Path]:
    paths = [folder / "images.gz", folder / "labels.gz"]
    for path, contents in zip(paths, (images, labels), strict=True):
        path.write_bytes(gzip.compress(contents))
    return paths


def test_idx_gives_images_and_labels(tmp_path):
    images, labels = read_idx(idx_files(tmp_path), 5, 3, side=4)
    assert torch.equal(images, IMAGES.unsqueeze(1))
    assert torch.equal(labels, LABELS.long())
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (idx(IMAGES)[:-1], "unpacks to 95 bytes; expected 96."),
        (idx(IMAGES) + bytes(10**7), "unpacks to more than the 96 bytes expected."),
        (
            idx(IMAGES.view(5, 2, 8)),
            "starts with 00000803 00000005 00000002 00000008; expected 00000803 00000005 00000004 00000004, "
            "the IDX header of 5 x 4 x 4 bytes.",
        ),
    ],
)
def test_idx_with_other_contents_is_refused(tmp_path, contents, what):
    with pytest.raises(DataError) as caught:
        read_idx(idx_files(tmp_path, images=contents), 5, 3, side=4)
    assert str(caught.value) == f"{tmp_path}/images.gz {what} {REMEDY}"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (
            lambda data: data[:-12],
            "cannot be unpacked: Compressed file ended before the end-of-stream marker was reached; "
            "expected a whole archive.",
        ),
        (lambda data: b"<html>", "cannot be unpacked: Not a gzipped file (b'<h'); expected a whole archive."),
        (
            lambda data: data[:-8] + bytes(4) + data[-4:],
            f"cannot be unpacked: CRC check failed 0x0 != {hex(gzip.zlib.crc32(idx(IMAGES)))}; "
            "expected a whole archive.",
        ),
        (
            lambda data: data[:10] + b"\xff" + data[11:],
            "cannot be unpacked: Error -3 while decompressing data: invalid block type; expected a whole archive.",
        ),
    ],
    ids=["truncated", "html", "checksum", "stream"],
)
def test_a_damaged_gzip_is_refused(tmp_path, damage, what):
    paths = idx_files(tmp_path)
    paths[0].write_bytes(damage(paths[0].read_bytes()))
    with pytest.raises(DataError) as caught:
        read_idx(paths, 5, 3, side=4)
    assert str(caught.value) == f"{tmp_path}/images.gz {what} {REMEDY}"


def test_labels_out_of_range_are_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        read_idx(idx_files(tmp_path), 5, 2, side=4)
    assert str(caught.value) == (f"{tmp_path}/labels.gz holds labels from 0 to 2; expected them from 0 to 1. {REMEDY}")


def test_a_file_that_vanished_is_named(tmp_path):
    paths = idx_files(tmp_path)
    paths[1].unlink()
    with pytest.raises(DataError) as caught:
        read_idx(paths, 5, 3, side=4)
    assert (
        str(caught.value)
        == f"{paths[1]} cannot be unpacked: No such file or directory; expected a whole archive. {REMEDY}"
    )


CIFAR_IMAGES = noise(4, 3, 32, 32)
CIFAR_LABELS = torch.tensor([3, 0, 9, 1])
TAR_MEMBERS = ["batches/one.bin", "batches/two.bin"]


def records(images: torch.Tensor, *labels: torch.Tensor) -> bytes:
    columns = [label.to(torch.uint8).unsqueeze(1) for label in labels]
    return torch.cat([*columns, images.flatten(1)], dim=1).numpy().tobytes()


def tar(path: Path, *members: tuple[str, bytes]) -> list[Path]:
    with tarfile.open(path, "w:gz") as archive:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return [path]


def cifar_parts() -> list[tuple[str, bytes]]:
    parts = zip(TAR_MEMBERS, CIFAR_IMAGES.split(2), CIFAR_LABELS.split(2), strict=True)
    return [(name, records(images, labels)) for name, images, labels in parts]


def test_cifar10_joins_its_batches_in_order(tmp_path):
    one, two = cifar_parts()
    paths = tar(tmp_path / "c.tar.gz", ("batches/readme.html", b"hello"), two, one)
    images, labels = read_cifar(paths, 4, 10, members=TAR_MEMBERS)
    assert torch.equal(images, CIFAR_IMAGES)
    assert torch.equal(labels, CIFAR_LABELS)
    assert images.is_contiguous()


def test_cifar100_gives_the_fine_label(tmp_path):
    coarse, fine = torch.tensor([1, 2, 3, 4]), torch.tensor([99, 0, 5, 7])
    paths = tar(tmp_path / "c.tar.gz", ("c/train.bin", records(CIFAR_IMAGES, coarse, fine)))
    images, labels = read_cifar(paths, 4, 100, members=["c/train.bin"], label_bytes=2)
    assert torch.equal(images, CIFAR_IMAGES)
    assert torch.equal(labels, fine)


def test_cifar_from_a_truncated_archive_is_refused(tmp_path):
    (path,) = tar(tmp_path / "c.tar.gz", *cifar_parts())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError) as caught:
        read_cifar([path], 4, 10, members=TAR_MEMBERS)
    assert str(caught.value) == (
        f"{path} cannot be unpacked: Compressed file ended before the end-of-stream marker was reached; "
        f"expected a whole archive. {REMEDY}"
    )


def test_cifar_without_a_batch_is_refused(tmp_path):
    (path,) = tar(tmp_path / "c.tar.gz", cifar_parts()[0])
    with pytest.raises(DataError) as caught:
        read_cifar([path], 4, 10, members=TAR_MEMBERS)
    assert str(caught.value) == f"{path} lacks batches/two.bin; expected every file of the data set. {REMEDY}"


def test_cifar_with_a_batch_of_another_size_is_refused(tmp_path):
    one, (name, contents) = cifar_parts()
    (path,) = tar(tmp_path / "c.tar.gz", one, (name, contents + b"x"))
    with pytest.raises(DataError) as caught:
        read_cifar([path], 4, 10, members=TAR_MEMBERS)
    assert str(caught.value) == (
        f"{path} has batches/two.bin, which is a file of 6147 bytes; expected a file of 6146 bytes. {REMEDY}"
    )


def test_members_with_hostile_names_are_never_written(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    hostile = [("../../evil", b"x"), (f"{tmp_path}/evil", b"x"), ("batches/../../evil", b"x")]
    (path,) = tar(folder / "c.tar.gz", *hostile, *cifar_parts())
    images, _ = read_cifar([path], 4, 10, members=TAR_MEMBERS)
    assert torch.equal(images, CIFAR_IMAGES)
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_a_link_in_place_of_a_batch_is_refused(tmp_path):
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(TAR_MEMBERS[0])
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError) as caught:
        read_cifar([path], 4, 10, members=TAR_MEMBERS)
    assert str(caught.value) == (
        f"{path} has batches/one.bin, which is not a plain file; expected a file of 6146 bytes. {REMEDY}"
    )


def test_an_archive_that_explodes_is_refused(tmp_path):
    (path,) = tar(tmp_path / "c.tar.gz", ("bomb", bytes(10**7)), *cifar_parts())
    with pytest.raises(DataError) as caught:
        read_cifar([path], 4, 10, members=TAR_MEMBERS, largest_bytes=10**6)
    assert str(caught.value) == f"{path} unpacks to more than the 1000000 bytes expected. {REMEDY}"


def svhn_file(path: Path, images: torch.Tensor, labels: list[int]) -> Path:
    scipy_io = pytest.importorskip("scipy.io", reason="SVHN's Matlab files need scipy")
    arrays = {
        "X": images.permute(2, 3, 1, 0).numpy(),
        "y": np.array(labels, dtype=np.uint8)[:, None],
    }
    scipy_io.savemat(path, arrays, do_compression=True)
    return path


def test_svhn_reads_ten_as_the_digit_zero(tmp_path):
    images, labels = read_svhn([svhn_file(tmp_path / "a.mat", CIFAR_IMAGES, [1, 10, 9, 5])], 4, 10)
    assert torch.equal(images, CIFAR_IMAGES)
    assert labels.tolist() == [1, 0, 9, 5]
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_svhn_joins_training_and_extra_pictures(tmp_path):
    paths = [
        svhn_file(tmp_path / "a.mat", CIFAR_IMAGES[:3], [1, 2, 3]),
        svhn_file(tmp_path / "b.mat", CIFAR_IMAGES[3:], [4]),
    ]
    images, labels = read_svhn(paths, 4, 10)
    assert torch.equal(images, CIFAR_IMAGES)
    assert labels.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "num_classes", "what"),
    [
        (5, 10, "holds 4 pictures; expected 5."),
        (
            3,
            10,
            "holds {'X': (32, 32, 3, 4), 'y': (4, 1)}; expected X (32, 32, 3, N) and y (N, 1) with N up to 3.",
        ),
        (4, 9, "holds labels from 1 to 10; expected them from 1 to 9."),
    ],
)
def test_svhn_with_other_contents_is_refused(tmp_path, count, num_classes, what):
    path = svhn_file(tmp_path / "a.mat", CIFAR_IMAGES, [1, 10, 9, 5])
    with pytest.raises(DataError) as caught:
        read_svhn([path], count, num_classes)
    assert str(caught.value) == f"{path} {what} {REMEDY}"


def test_svhn_with_pictures_of_another_type_is_refused(tmp_path):
    path = svhn_file(tmp_path / "a.mat", CIFAR_IMAGES.double(), [1, 10, 9, 5])
    with pytest.raises(DataError) as caught:
        read_svhn([path], 4, 10)
    assert str(caught.value) == (f"{path} holds pictures of type torch.float64; expected torch.uint8. {REMEDY}")


def test_svhn_that_is_no_matlab_file_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    for contents in (b"<html>" * 100, b""):
        path.write_bytes(contents)
        with pytest.raises(DataError) as caught:
            read_svhn([path], 4, 10)
        # The reason in the middle is scipy's own text.
        assert str(caught.value) == f"{path} cannot be read: {caught.value.__cause__}; expected a Matlab file. {REMEDY}"


def test_svhn_that_ends_early_is_refused(tmp_path):
    path = svhn_file(tmp_path / "a.mat", CIFAR_IMAGES, [1, 10, 9, 5])
    contents = path.read_bytes()
    path.write_bytes(contents[:3000])
    with pytest.raises(DataError) as caught:
        read_svhn([path], 4, 10)
    assert str(caught.value) == (
        f"{path} holds {{'X': (32, 32, 3, 4)}}; expected X (32, 32, 3, N) and y (N, 1) with N up to 4. {REMEDY}"
    )
    path.write_bytes(contents[:3000] + bytes(1000) + contents[4000:])
    with pytest.raises(DataError) as caught:
        read_svhn([path], 4, 10)
    assert str(caught.value) == f"{path} cannot be read: {caught.value.__cause__}; expected a Matlab file. {REMEDY}"


def test_without_scipy_the_text_names_the_extra(tmp_path, monkeypatch):
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(formats.importlib, "import_module", fail)
    with pytest.raises(DataError) as caught:
        read_svhn([tmp_path / "a.mat"], 4, 10)
    assert str(caught.value) == (
        "SVHN's files are Matlab files, and scipy, which reads them, is not installed. "
        "Install it with: pip install candid-vision[svhn]"
    )
