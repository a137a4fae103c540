"""What a run starts from: its recipe with nothing left open, and a record of the machine and the data."""

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import deterministic

from candid.checkpoint import RunFolder, build_network
from candid.data.catalog import full_name
from candid.data.examples import DataSet, Examples, FileExamples, StoredExamples
from candid.data.hashing import hash_files
from candid.device import (
    choose_memory_format,
    choose_precision,
    describe_device,
    describe_processor,
    refuse_compiling_without_compiler,
)
from candid.errors import InputError
from candid.models import find_variant
from candid.models.dense_block import Memory, fastest_memory
from candid.models.dense_pieces import describe_pieces
from candid.recipe import Recipe
from candid.training.progress import command_line
from candid.weights import Loaded, load_weights
from candid.words import count

PACKAGES = ("candid-vision", "torch", "torchvision", "numpy", "pillow", "safetensors")


def resolve_recipe(recipe: Recipe, data_set: DataSet, device: torch.device) -> Recipe:
    """The recipe with every "auto" and 0 replaced by what they come to for this data and this device."""
    if recipe.training.compile:
        refuse_compiling_without_compiler(device)
    if recipe.training.sync_batch_norm and device.type != "cuda":
        raise InputError(
            f"training.sync_batch_norm is true, but torch does this on GPUs only, not on {device.type}; it must be "
            "false here. Leave --sync-bn out."
        )
    validation = data_set.validation if recipe.data.validation is None else recipe.data.validation
    recipe = recipe.replace(
        {
            "data.name": full_name(recipe.data.name),
            "data.image_size": recipe.data.image_size
            or data_set.image_size
            or find_variant(recipe.model.name).image_size,
            "data.channels": recipe.data.channels or data_set.channels,
            "data.validation": float(validation),
            "model.weights": _absolute(recipe.model.weights),
            "model.dropout": find_variant(recipe.model.name).dropout
            if recipe.model.dropout is None
            else recipe.model.dropout,
            "training.deterministic": device.type == "cpu"
            if recipe.training.deterministic is None
            else recipe.training.deterministic,
            "training.memory": choose_memory(recipe, device),
            "training.memory_format": choose_memory_format(recipe.training.memory_format),
            "training.compile": bool(recipe.training.compile),
            "training.threads": recipe.training.threads or torch.get_num_threads(),
        }
    )
    with torch.device("meta"):
        model = build_network(recipe, len(data_set.class_names))
    if recipe.training.early_image_size:
        refuse_early_image_size(recipe, model, len(data_set.class_names))
    return recipe.replace({"training.precision": choose_precision(recipe.training.precision, device, model)})


def refuse_early_image_size(recipe: Recipe, model: nn.Module, num_classes: int) -> None:
    """Raise an InputError unless `model`, the network of a resolved recipe, also takes pictures of the early size."""
    early, size, name = recipe.training.early_image_size, recipe.data.image_size, recipe.model.name
    if early >= size:
        raise InputError(
            f"training.early_image_size is {early} px; it must be below data.image_size ({size} px), or 0 to train at "
            "one size."
        )
    with torch.device("meta"):
        smaller = build_network(recipe.replace({"data.image_size": early}), num_classes)
    if [value.shape for value in smaller.parameters()] != [value.shape for value in model.parameters()]:
        raise InputError(
            f"training.early_image_size is {early} px, but {name} is another network for pictures of that size; it "
            "must be 0 here. Choose a network that ends in a pooling of all pixels."
        )


def use_settings(recipe: Recipe, device: torch.device) -> None:
    """Let torch compute as a resolved recipe says, in all of this process."""
    torch.set_num_threads(recipe.training.threads)
    torch.use_deterministic_algorithms(bool(recipe.training.deterministic))
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # takes time
    # cuDNN tries its algorithms for each new shape, of which training has few
    torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.training.deterministic


def choose_memory(recipe: Recipe, device: torch.device) -> Memory:
    """What `training.memory` of a recipe comes to for its network on a device."""
    memory, network = recipe.training.memory, recipe.model.name
    has_dense_block, synchronises = find_variant(network).has_dense_block, recipe.training.sync_batch_norm
    if memory == "shared" and not has_dense_block:
        raise InputError(
            f"training.memory is 'shared', but {network} has no dense block whose maps could be shared; it must be "
            "'auto', 'plain' or 'recompute'. To need less memory, use recompute."
        )
    if memory in ("shared", "recompute") and recipe.training.compile:
        raise InputError(
            f"training.memory is {memory!r} and training.compile is true, which torch cannot do together for "
            f"{network}; expected one of them. Leave --compile out, or set training.memory to plain."
        )
    if memory in ("shared", "recompute") and has_dense_block and synchronises:
        raise InputError(
            f"training.memory is {memory!r} and training.sync_batch_norm is true, but a dense block that keeps less "
            "takes its statistics by itself; it must be 'auto' or 'plain'. Or leave --sync-bn out."
        )
    if memory == "auto":
        is_plain = synchronises or recipe.training.compile or not has_dense_block
        return "plain" if is_plain else fastest_memory(device)
    return memory


def load_start(recipe: Recipe, num_classes: int) -> Loaded | None:
    """The weights that a resolved recipe begins from; None where they are random.

    `model.weights` may be a file, an address, or a run of candid, whose checkpoint is then taken.

    Raises:
        InputError: if there is no such file.
        CheckpointError: if it does not hold weights of the recipe's network.
    """
    source = recipe.model.weights
    if not source:
        return None
    if (Path(source) / "recipe.toml").is_file():
        run = RunFolder.open(Path(source))
        source = str(run.checkpoints / run.load().name / "model.safetensors")
    network = build_network(recipe, num_classes)
    return load_weights(source, network, recipe.model.name, new_head=recipe.model.new_head)


def describe_environment(recipe: Recipe, device: torch.device, train: Examples, num_ranks: int) -> dict[str, object]:
    """What a run's bits depend on beside its recipe."""
    return {
        "command": command_line(),
        "versions": describe_versions(),
        "platform": platform.platform(),
        "processor": describe_processor(),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "dense blocks": describe_dense_blocks(recipe, device),
        "ranks": num_ranks,
        "training_images": len(train),
        "training_data_sha256": hash_examples(train),
        "git_commit": _git_commit(),
    }


def describe_left_out(unreadable: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each split of which pictures were left out."""
    return [
        f"Left out of the {split} split: {count(len(problems), 'file')} that cannot be used; the first: {problems[0]}"
        for split, problems in unreadable.items()
        if problems
    ]


def describe_dense_blocks(recipe: Recipe, device: torch.device) -> str | None:
    """How the dense blocks of a resolved recipe's network remember, and what computes them; None where it has none."""
    if not find_variant(recipe.model.name).has_dense_block:
        return None
    memory = recipe.training.memory
    return memory if memory == "plain" else f"{memory}, {describe_pieces(device)}"


def describe_versions() -> dict[str, str]:
    """Of Python and of the packages whose code makes or reads the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def describe_changes(
    before: Mapping[str, object], now: Mapping[str, object], recipe_changes: Mapping[str, tuple[object, object]]
) -> list[str]:
    """A sentence for each thing that is not as it was when the run began, and that its bits may depend on."""
    lines = [f"Changed: {key} was {old!r}, is {new!r}." for key, (old, new) in recipe_changes.items()]
    old, new = _what_bits_depend_on(before), _what_bits_depend_on(now)
    for key in [key for key in new if old.get(key) != new[key]]:
        lines.append(f"The {key} changed from {old.get(key)} to {new[key]}; the result may differ in its last digits.")
    return lines


def _what_bits_depend_on(environment: Mapping[str, Any]) -> dict[str, object]:
    """By its name for people; on the CPU, the number of threads is part of the device."""
    names = ("processor", "device", "instructions", "dense blocks", "ranks")
    facts: dict[str, object] = {name: environment.get(name) for name in names}
    return facts | {f"version of {name}": number for name, number in environment.get("versions", {}).items()}


def hash_examples(examples: Examples) -> str:
    """SHA-256 over what is trained on: names, labels, and pixels or, of pictures that stay on disk, their files.

    Of these, it goes by the SHA-256 of each where it is known, else by their sizes.
    """
    if isinstance(examples, StoredExamples):
        return _hash_parts(examples, examples.images.contiguous().numpy().data)
    return _hash_parts(examples, _lines(examples.sha256)) if examples.sha256 else _hash_sizes(examples)


def are_those(examples: Examples, sha256: object) -> bool:
    """Whether examples are those of which `hash_examples` once gave this; more or less may have been known then."""
    if sha256 == hash_examples(examples):
        return True
    if isinstance(examples, StoredExamples):
        return False
    if sha256 == _hash_sizes(examples):
        return True
    return not examples.sha256 and sha256 == _hash_parts(examples, _lines(hash_files(examples.root, examples.files)))


def _hash_sizes(examples: FileExamples) -> str:
    return _hash_parts(examples, _lines((examples.root / file).stat().st_size for file in examples.files))


def _hash_parts(examples: Examples, pictures: bytes | memoryview) -> str:
    digest = hashlib.sha256("\n".join(examples.files).encode())
    digest.update(examples.labels.numpy().data)
    digest.update(pictures)
    return digest.hexdigest()


def _lines(values: Iterable[object]) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def _absolute(source: str) -> str:
    """A path that means the same from every folder; an address as it is."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _git_commit() -> str | None:
    """The commit of candid's own source, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
