"""Weights from elsewhere: files and addresses, the names in them, and what of them fits a network of the zoo."""

from pathlib import Path

from torch import nn

from candid.weights.fetching import WEIGHTS_DIR, find_file
from candid.weights.matching import Loaded, Report, match
from candid.weights.reading import WeightsFile, read_weights

__all__ = ["WEIGHTS_DIR", "Loaded", "Report", "WeightsFile", "load_weights", "open_weights"]


def open_weights(source: str | Path, sha256: str = "", weights_dir: Path = WEIGHTS_DIR) -> WeightsFile:
    """What the file holds that `source` names, a path or an http address; nothing in it is run.

    `sha256` in 64 hexadecimal digits, or "" where the file's name or nothing vouches for it. What is downloaded is
    kept in `weights_dir`.

    Raises:
        InputError: if there is no such file, or no checksum to download by.
        CheckpointError: if the file is not the one meant, is damaged, holds no weights, or asks for code to be run.
    """
    return read_weights(find_file(str(source), sha256, weights_dir))


def load_weights(
    source: str | Path,
    model: nn.Module,
    name: str,
    *,
    new_head: bool = False,
    sha256: str = "",
    weights_dir: Path = WEIGHTS_DIR,
) -> Loaded:
    """Weights from `source` for `model`, which was built as `name` and is left as it is.

    With `new_head`, the layers that depend on the number of classes keep the values that they have in `model`.

    Raises:
        InputError: as `open_weights`.
        CheckpointError: as `open_weights`, and if they are not the weights of such a network.
    """
    return match(open_weights(source, sha256, weights_dir), model, name, new_head=new_head)
