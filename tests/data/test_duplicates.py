"""What counts as the same picture: by pictures that were made the same, and by pictures that were not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from candid.data.catalog import open_data_set
from candid.data.duplicates import MOST_BITS, MOST_LOW_BITS, SIDE_PX, find_alike, find_copies, hash_looks

Change = Callable[[Image.Image], Image.Image]


def photo(seed: int, side: int = 64) -> Image.Image:
    """Noise whose coarse parts are stronger than its fine ones, as in photographs."""
    random = np.random.default_rng(seed)
    layers = [np.kron(random.normal(0, 30, (n, n, 3)), np.ones((side // n, side // n, 1))) for n in (2, 4, 8, 16, 32)]
    return Image.fromarray((128 + sum(layers)).clip(0, 255).astype(np.uint8))


def jpeg(quality: int) -> Change:
    def store(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return store


def hashes(images: list[Image.Image]) -> np.ndarray:
    squares = [image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR) for image in images]
    return hash_looks(np.stack([np.asarray(square, dtype=np.float32) for square in squares]))


CHANGES: dict[str, Change] = {
    "stored as a JPEG": jpeg(75),
    "stored as a poor JPEG": jpeg(50),
    "half as large": lambda image: image.resize((32, 32), Image.Resampling.LANCZOS),
    "twice as large": lambda image: image.resize((128, 128), Image.Resampling.BICUBIC),
    "darker": lambda image: image.point(lambda value: value * 2 // 3),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_picture_looks_the_same(change: Change):
    images = [photo(seed) for seed in range(60)]
    found = find_alike(hashes([*images, *map(change, images)]))
    assert [group.tolist() for group in found] == [[number, number + 60] for number in range(60)]


def test_other_pictures_do_not():
    assert find_alike(hashes([photo(seed) for seed in range(400)])) == []


def test_small_pictures_of_one_kind_do_not():
    """Of 28 px and a single shape each: shirts look like shirts, but are not the same shirt."""
    images = open_data_set("fashion-mnist-mini").openers["test"]().images[:, 0]
    assert find_alike(hashes([Image.fromarray(image.numpy()) for image in images])) == []


def test_blank_pictures_show_nothing_to_compare():
    blank = [Image.new("L", (40, 40), level) for level in (0, 0, 128, 255, 255)]
    assert not hashes(blank).any()
    assert find_alike(hashes(blank)) == []


def test_all_within_the_bounds_are_found_and_none_beyond():
    """Against the comparison of each with every other."""
    random = np.random.default_rng(0)
    words = random.integers(0, 2**63, (300, 4), dtype=np.uint64)
    near = words.copy()
    for row in near:
        for column, most in ((0, 6), (1, 12), (2, 12)):
            for bit in random.choice(64, random.integers(0, most), replace=False).tolist():
                row[column] ^= np.uint64(1 << bit)
    every = np.concatenate([words, near])
    bits = np.unpackbits(every.view(np.uint8).reshape(600, 4, 8), axis=2).astype(int)
    differing = np.abs(bits[:300] - bits[300:]).sum(axis=2)  # [300, 4]
    is_same = (differing[:, 0] <= MOST_LOW_BITS) & (differing.sum(axis=1) <= MOST_BITS)
    assert 50 < is_same.sum() < 280
    assert [group.tolist() for group in find_alike(every)] == [[n, n + 300] for n in np.flatnonzero(is_same).tolist()]


def test_many_that_look_the_same_are_one_group():
    row = hashes([photo(1)])
    assert [group.tolist() for group in find_alike(np.repeat(row, 5000, axis=0))] == [list(range(5000))]


def test_equal_digests_are_copies():
    digests = np.random.default_rng(0).integers(0, 256, (9, 32), dtype=np.uint8)
    digests[7] = digests[4] = digests[1]
    digests[8] = digests[0]
    assert [group.tolist() for group in find_copies(digests)] == [[0, 8], [1, 4, 7]]
    assert find_copies(digests[:0]) == find_alike(np.zeros((0, 4), np.uint64)) == []
