"""Names of parameters: what wrappers of a network add to them, and which belong to its head."""

from collections.abc import Iterable, Mapping

import torch

Shapes = Mapping[str, torch.Size]

WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),  # of PyTorch
    *("model", "net", "network", "backbone"),  # of the programs around a network
}


def bare(name: str) -> str:
    """The name without the parts that wrappers add, wherever they stand in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def wrappers_in(names: Iterable[str]) -> list[str]:
    """The parts that `bare` takes away, in the order in which they first appear."""
    return list(dict.fromkeys(part for name in names for part in name.split(".") if part in WRAPPERS))


def common_wrapper(names: Iterable[str]) -> str:
    """The part with which all of several names begin, if there is one and every name goes on after it."""
    firsts = {name.partition(".")[0] if "." in name else "" for name in names}
    return firsts.pop() if len(firsts) == 1 else ""


def is_head(name: str) -> bool:
    """Whether a parameter or a module of ours belongs to a layer that depends on the number of classes."""
    return "head" in name.split(".")


def is_counter(name: str) -> bool:
    """Whether it counts the batches that a normalisation has seen, which nothing reads."""
    return name.endswith("num_batches_tracked")
