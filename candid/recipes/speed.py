"""The fewest operations to a stated accuracy on small pictures."""

from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Schedule, Training
from candid.recipes.shipped import Group, describe, written


def airbench90() -> Recipe:
    """The network of airbench for seven epochs, meant for 90 % on CIFAR-10: 0.25 PFLOP. Any small pictures: --data."""
    return _airbench(epochs=7)


def airbench94() -> Recipe:
    """The network of airbench for 16 epochs, meant for 94 % on CIFAR-10: 0.57 PFLOP. Any small pictures: --data."""
    return _airbench(epochs=16)


def densenet90() -> Recipe:
    """A shallow, wide DenseNet for eight epochs, meant for 90 % on CIFAR-10: 0.13 PFLOP. Any small pictures: --data."""
    return _airbench(epochs=8).replace({"model.name": "densenet-speed"})


def _airbench(epochs: int) -> Recipe:
    """Jordan 2024 (arXiv:2404.00498) with Muon as in the author's later record runs.

    Departures: batches of 500 instead of 2,000, black margins instead of mirrored ones, AdamW in place of SGD with a
    rate of its own for the biases of each kind, no averaging over mirrored test pictures.
    """
    return Recipe(
        data=Data(name="cifar10", image_size=32, validation=0.0),
        augmentation=Augmentation(crop_padding=2, mirror=True, mirror_alternates=True),
        model=Model(name="airbench94"),
        training=Training(epochs=epochs, batch_size=500, label_smoothing=0.2),
        optimizer=Optimizer(name="muon", rate=0.24, momentum=0.6, weight_decay=0.0),
        schedule=Schedule(name="one-cycle", warmup=0.0),
    )


GROUPS = (
    Group(
        "The fewest operations to an accuracy",
        describe(_airbench),
        {
            "speed/airbench90": written(airbench90),
            "speed/airbench94": written(airbench94),
            "speed/densenet90": written(densenet90),
        },
    ),
)
