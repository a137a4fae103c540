"""Pictures that are the same, to the byte or to the eye, found without comparing each with every other.

To the byte: the SHA-256 of the files. To the eye: the signs of the 16 x 16 lowest frequencies (discrete cosine
transform) of the grey picture at 32 x 32 px, 256 bits. Stored anew, resized or made brighter, a picture keeps nearly
all of them, while others differ in a third. A picture is held against those alone that share a third of its 64 lowest
frequencies, which any two within MOST_LOW_BITS of each other do.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

SIDE_PX, NUM_FREQUENCIES, NUM_LOW = 32, 16, 8
MOST_LOW_BITS, MOST_BITS = 4, 24
"""In how many of the 64 lowest frequencies, and of all 256, two pictures differ at most that look the same."""
NUM_BLOCKS, NUM_SHARED = 6, 2
"""In so many blocks the 64 bits are cut; MOST_LOW_BITS differences leave so many of them alike."""
MOST_NEIGHBOURS = 32
"""Pictures with the same blocks that one is held against; more would take long where many share them."""
LEAST_CONTRAST = 1.0
"""Standard deviation, of 255 levels, below which a picture shows nothing to compare."""

Hashes = NDArray[np.uint64]
"""[N, 4], of which the first column has the 64 lowest frequencies; all zero where there is nothing to compare."""


def hash_looks(squares: NDArray[np.float32]) -> Hashes:
    """The hashes [N, 4] of grey pictures [N, SIDE_PX, SIDE_PX]."""
    waves = _waves()
    frequencies = waves @ squares @ waves.T  # [N, 16, 16]
    low = frequencies[:, :NUM_LOW, :NUM_LOW].reshape(len(squares), -1)
    right = frequencies[:, :NUM_LOW, NUM_LOW:].reshape(len(squares), -1)
    below = frequencies[:, NUM_LOW:].reshape(len(squares), -1)
    bits = np.packbits(np.concatenate([low, right, below], axis=1) > 0, axis=1)  # [N, 32]
    bits[squares.std(axis=(1, 2)) < LEAST_CONTRAST] = 0
    return bits.view(np.uint64)


def find_copies(sha256: NDArray[np.uint8]) -> list[NDArray[np.intp]]:
    """Groups of two or more positions with the same SHA-256 [N, 32], each ascending."""
    _, group_of = np.unique(sha256, axis=0, return_inverse=True)
    return _gather(group_of.reshape(-1))


def find_alike(hashes: Hashes) -> list[NDArray[np.intp]]:
    """Groups of two or more positions of pictures that are the same to the eye, each ascending.

    Whoever is like one of a group belongs to it.
    """
    different, group_of = np.unique(hashes, axis=0, return_inverse=True)
    leader = np.arange(len(different))
    for first, second in _pairs(different):
        apart = leader[first] != leader[second]
        for a, b in zip(first[apart].tolist(), second[apart].tolist(), strict=True):
            a, b = sorted((_lead(leader, a), _lead(leader, b)))
            leader[b] = a
        while (leader[leader] != leader).any():
            leader = leader[leader]
    shown = np.flatnonzero(hashes.any(axis=1))
    return [shown[group] for group in _gather(leader[group_of.reshape(-1)][shown])]


def _pairs(hashes: Hashes) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Positions of pictures that are the same to the eye."""
    shown = np.flatnonzero(hashes.any(axis=1))
    low = hashes[shown, 0]
    blocks = np.array_split(np.arange(64, dtype=np.uint64), NUM_BLOCKS)
    for chosen in combinations(blocks, NUM_SHARED):
        key = low & np.bitwise_or.reduce(np.uint64(1) << np.concatenate(chosen))
        order = np.lexsort((low, key))
        for distance in range(1, MOST_NEIGHBOURS + 1):
            first, second = order[:-distance], order[distance:]
            shares = key[first] == key[second]
            if not shares.any():
                break
            first, second = shown[first[shares]], shown[second[shares]]
            differing = hashes[first] ^ hashes[second]
            is_same = _count_bits(differing[:, :1]) <= MOST_LOW_BITS
            is_same &= _count_bits(differing) <= MOST_BITS
            yield first[is_same], second[is_same]


def _count_bits(words: Hashes) -> NDArray[np.int64]:
    """Bits that are set in each row of [N, words]."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)


def _lead(leader: NDArray[np.intp], position: int) -> int:
    """The first of the group of a position, which is brought nearer to it."""
    while leader[position] != position:
        leader[position] = leader[leader[position]]
        position = int(leader[position])
    return position


def _gather(group_of: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The positions of each group of two or more, ordered by their first ones."""
    order = np.argsort(group_of, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(group_of[order])) + 1, len(order))
    sizes = np.diff(ends, prepend=0)
    groups = [order[end - size : end] for end, size in zip(ends[sizes > 1], sizes[sizes > 1], strict=True)]
    return sorted(groups, key=lambda group: int(group[0]))


def _waves() -> NDArray[np.float32]:
    """[16, 32]: the lowest frequencies of the discrete cosine transform."""
    places = (np.arange(SIDE_PX) + 0.5) * np.pi / SIDE_PX
    return np.cos(np.arange(NUM_FREQUENCIES)[:, None] * places).astype(np.float32)
