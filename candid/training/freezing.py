"""Fine-tuning: which layers stay as they were loaded, and in which epochs."""

from dataclasses import dataclass

import torch
from torch import nn

from candid.checkpoint import build_network
from candid.errors import InputError, did_you_mean
from candid.recipe import Recipe
from candid.weights.names import is_head


@dataclass(frozen=True)
class Freezing:
    """Layers that are not trained; from the last to the first they are set free, if the recipe says so."""

    parts: tuple[tuple[str, ...], ...] = ()
    """Names of modules with values of their own, grouped into parts such as stages.2, in the order of the data."""
    unfreeze_every: int = 0
    """Epochs after which the last frozen part is trained too; 0 keeps all of them frozen."""

    def frozen(self, epoch: int) -> set[str]:
        """Names of the modules that epoch 0, 1, ... leaves as they are."""
        num_free = epoch // self.unfreeze_every if self.unfreeze_every else 0
        return {name for part in self.parts[: max(0, len(self.parts) - num_free)] for name in part}

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Put the network into training mode, but for the layers frozen in this epoch.

        Their parameters get no gradient; their normalisation uses its running statistics and does not move them.
        """
        model.train()
        if not self.parts:
            return
        frozen = self.frozen(epoch)
        for name, module in model.named_modules():
            if name in frozen:
                module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(name not in frozen)


def plan_freezing(recipe: Recipe, num_classes: int) -> Freezing:
    """What `model.freeze` of a resolved recipe means for its network.

    Raises:
        InputError: if it names a part that the network does not have.
    """
    settings = recipe.model
    if settings.freeze == "none":
        return Freezing()
    layers = _layers_in_order(recipe, num_classes)
    first_trained = settings.freeze.removeprefix("until:")
    if settings.freeze == "backbone":
        frozen = [name for name in layers if not is_head(name)]
    elif not first_trained or all(not _is_inside(name, first_trained) for name in layers):
        parts = list(dict.fromkeys(map(_part, layers)))
        advice = did_you_mean(first_trained, parts, otherwise=f"Its parts are {', '.join(parts)}.")
        raise InputError(f"model.freeze is {settings.freeze!r}, but {settings.name} has no such part. {advice}")
    else:
        frozen = layers[: next(k for k, name in enumerate(layers) if _is_inside(name, first_trained))]
    parts = dict.fromkeys(map(_part, frozen))
    return Freezing(
        tuple(tuple(name for name in frozen if _part(name) == part) for part in parts), settings.unfreeze_every
    )


def _layers_in_order(recipe: Recipe, num_classes: int) -> list[str]:
    """Names of the modules with values of their own, as the data reaches them; auxiliary classifiers come last."""
    side = recipe.data.image_size
    with torch.device("meta"):
        model, images = build_network(recipe, num_classes), torch.empty(1, recipe.data.channels, side, side)
    layers = {module: name for name, module in model.named_modules() if _has_values(module)}
    reached: dict[str, None] = {}

    def note(module: nn.Module, _: object) -> None:
        reached[layers[module]] = None

    for module in layers:
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(images)
    return list(reached | dict.fromkeys(layers.values()))


def _has_values(module: nn.Module) -> bool:
    return any(True for values in (module.parameters, module.buffers) for _ in values(recurse=False))


def _part(name: str) -> str:
    """The block of a layer, for one unfreezing: stages.2 of stages.2.0.conv1."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdecimal() else first


def _is_inside(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")
