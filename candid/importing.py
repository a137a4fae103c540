"""Weights from elsewhere become a run folder, as if they had been trained here."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from candid.checkpoint import Checkpoint, RunFolder, TrainingState, build_network, refuse_existing
from candid.device import choose_memory_format
from candid.errors import InputError
from candid.models import find_variant
from candid.recipe import Recipe
from candid.training.progress import Reporter, command_line
from candid.training.setup import describe_versions
from candid.weights import WEIGHTS_DIR, WeightsFile, open_weights
from candid.weights.matching import find_num_classes, match, num_misshapen
from candid.weights.meaning import Origin, check_statistics, choose_preprocessing, find_origin, read_class_names


def import_weights(
    source: str | Path,
    model: str,
    out: str | Path,
    *,
    classes: Path | None = None,
    data: str | None = None,
    new_head: bool = False,
    image_size: int = 0,
    channels: int = 0,
    fit: str = "crop",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sha256: str = "",
    weights_dir: Path = WEIGHTS_DIR,
) -> Path:
    """Make a run folder of weights from elsewhere, as if it had been trained; its path.

    `source` is a file or an http address, which is downloaded into `weights_dir` and needs a checksum. The class
    names come from the file `classes`, else from `data`, a data set's name or a folder; else they are numbers. What
    is 0 or None of `image_size` in px, `channels`, `mean` and `std` comes from `data`, the file's shapes and the
    network. `evaluate` takes `data` too.

    Raises:
        InputError: if an argument cannot be used, or something is not known and has to be given.
        CheckpointError: if the file, or the class file, cannot be used. Nothing has been written then.
    """
    out, variant, given = Path(out), find_variant(model), check_statistics(mean, std)
    refuse_existing(out)
    wanted = Recipe().replace(
        {"model.name": model, "data.image_size": image_size, "data.channels": channels, "data.fit": fit}
    )
    origin = find_origin(data)
    class_names = origin.class_names or None if classes is None else read_class_names(classes)
    if new_head and class_names is None:
        raise InputError("--new-head needs the names of the new classes; expected --classes FILE or --data NAME.")
    file = open_weights(source, sha256, weights_dir)
    recipe = _resolve_imported(wanted, file, origin)
    class_names = class_names or _number_classes(file, recipe)
    network = build_network(recipe, len(class_names))
    loaded = match(file, network, model, new_head=new_head)
    preprocessing, sentence = choose_preprocessing(
        recipe.data, given, origin, sha256=file.sha256, is_of_imagenet=variant.image_size == 224
    )
    checkpoint = Checkpoint(loaded.state, recipe, class_names, preprocessing, step=0, epoch=0, validation_accuracy=None)
    environment: dict[str, object] = {
        "command": command_line(),
        "versions": describe_versions(),
        "imported": {"source": str(source), **asdict(loaded.report)},
    }
    run = RunFolder.create(out, recipe, environment)
    try:
        run.save(checkpoint, TrainingState({}), is_best=False)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    for line in (*loaded.report.text().splitlines(), sentence):
        Reporter().say(line)
    return out


def _resolve_imported(wanted: Recipe, file: WeightsFile, origin: Origin) -> Recipe:
    """The recipe with nothing left open: of the sizes and channels that come into question, those that fit best."""
    model, variant = wanted.model.name, find_variant(wanted.model.name)
    settled = wanted.replace(
        {
            "data.name": origin.name,
            "data.validation": 0.1 if origin.has_validation else 0.0,  # of the rest, all may have been trained on
            "model.dropout": variant.dropout,
            "training.precision": "fp32",
            "training.memory_format": choose_memory_format("auto"),
        }
    )
    smallest = variant.config.smallest_image_size
    usual = [size for size in (origin.image_size, variant.image_size) if size and size >= smallest]
    recipes = [
        settled.replace({"data.image_size": size, "data.channels": channels})
        for size in ([wanted.data.image_size] if wanted.data.image_size else usual)
        for channels in (
            [wanted.data.channels] if wanted.data.channels else dict.fromkeys((origin.channels or 3, 3, 1))
        )
    ]
    with torch.device("meta"):
        return min(recipes, key=lambda recipe: num_misshapen(file, build_network(recipe, variant.num_classes), model))


def _number_classes(file: WeightsFile, recipe: Recipe) -> tuple[str, ...]:
    """The names class 0, class 1 and so on: as many as the head in the file has, else the network's own number."""
    model, own = recipe.model.name, find_variant(recipe.model.name).num_classes
    with torch.device("meta"):
        num_classes = find_num_classes(file, build_network(recipe, own), model) or own
    return tuple(f"class {index}" for index in range(num_classes))
