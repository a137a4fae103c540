"""Randomness that is a function of what it is for, so that there is no hidden state to save or to lose."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def seed_for(*purpose: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part of `purpose`, such as (seed, "shuffle", epoch)."""
    text = "/".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator_for(*purpose: int | str) -> torch.Generator:
    """A CPU generator seeded by `purpose`."""
    return torch.Generator().manual_seed(seed_for(*purpose))


def uniform(num_examples: int, *purpose: int | str) -> Tensor:
    """Draws in [0, 1), float32 [num_examples]: one for each example of the training set.

    Each batch looks its own examples' draws up by index, so neither the batch an example falls into nor
    the number of workers changes what is drawn for it.
    """
    return torch.rand(num_examples, generator=generator_for(*purpose))


def beta(num_examples: int, alpha: float, *purpose: int | str) -> Tensor:
    """Draws from Beta(alpha, alpha), float32 [num_examples]: one for each example, as in `uniform`."""
    draws = np.random.default_rng(seed_for(*purpose)).beta(alpha, alpha, num_examples)
    return torch.from_numpy(draws.astype(np.float32))


def shuffled(num_examples: int, *purpose: int | str) -> Tensor:
    """A permutation of the indices of the training set, int64 [num_examples]."""
    return torch.randperm(num_examples, generator=generator_for(*purpose))
