"""Recipes of the study notes of the classic course: each network as they trained it."""

from dataclasses import dataclass
from functools import partial

from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Schedule, Training
from candid.recipes.shipped import Group, Shipped, describe


@dataclass(frozen=True)
class Row:
    """A network on Fashion-MNIST."""

    model: str
    image_size: int
    batch_size: int
    result: str
    """What the notes say of it, as a line."""
    rate: float = 1e-3


# fmt: off
FASHION_MNIST = {
    "notes/lenet": Row("lenet", 28, 256, "88.5 % test accuracy in the notes, of a run that went on from another one"),
    "notes/lenet-bn": Row("lenet-bn", 28, 256, "75.1 % test accuracy in the notes, whose normalisation had a defect"),
    "notes/alexnet": Row("alexnet-notes", 224, 128, "90.7 % test accuracy in the notes"),
    "notes/vgg11": Row("vgg11-notes", 224, 64, "printed in the notes, but trained only with an eighth of the widths"),
    "notes/vgg11-small": Row("vgg11-notes-small", 224, 64, "91.2 % test accuracy in the notes"),
    "notes/nin": Row("nin-notes", 224, 128, "83.0 % test accuracy in the notes", rate=2e-3),
    "notes/googlenet": Row("googlenet-notes", 96, 128, "88.5 % test accuracy in the notes"),
    "notes/resnet18": Row("resnet18-notes", 96, 256, "92.1 % test accuracy in the notes"),
    "notes/densenet": Row("densenet-notes", 96, 128, "out of memory in the notes, on a GPU of 2 GB"),
}
# fmt: on


def course(row: Row) -> Recipe:
    """Adam at a constant rate for five epochs on Fashion-MNIST, without weight decay or augmentation.

    The figures are those of the notes after the fifth epoch; nothing of it was run here. The code of the notes has
    slips (a block too few in a stage, an activation that is missing) that the networks here do not repeat.

    Departures: the notes train on all 60,000 pictures and look at the test split after each epoch; here a tenth of the
    training pictures is held out for that, and test is looked at once. `data.validation=0` trains on all.
    """
    return Recipe(
        data=Data(name="fashion-mnist", image_size=row.image_size),
        model=Model(name=row.model),
        training=Training(epochs=5, batch_size=row.batch_size),
        optimizer=Optimizer(name="adam", rate=row.rate, weight_decay=0.0),
        schedule=Schedule(name="constant", warmup=0.0),
    )


def cifar(model: str, epochs: int, batch_size: int, schedule: Schedule, *, nesterov: bool = False) -> Recipe:
    """SGD at 0.1 on CIFAR-10, shifted and mirrored, with momentum 0.9 and weight decay 1e-4.

    The figures are those of the notes, where an epoch of `densenet-cifar` took 3 min 25 s; nothing of it was run here.

    Departures: the notes train on all 50,000 pictures and look at the test split after each epoch; here 5,000 are held
    out for that, and test is looked at once. For `densenet-cifar`, the batch of 128 and the augmentation are the
    usual ones and may not be those of the notes.
    """
    return Recipe(
        data=Data(name="cifar10"),
        augmentation=Augmentation(crop_padding=4, mirror=True),
        model=Model(name=model),
        training=Training(epochs=epochs, batch_size=batch_size),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=nesterov, weight_decay=1e-4),
        schedule=schedule,
    )


STEPS = Schedule(name="multi-step", warmup=0.0, milestones=(0.5, 0.75), factor=0.1)
HALVING = Schedule(name="plateau", warmup=0.0, factor=0.5, patience=5)

CIFAR = {
    "notes/densenet-cifar": Shipped(
        partial(cifar, "densenet-cifar", 20, 128, STEPS),
        "90.06 % test accuracy in the notes after 20 epochs, rate divided by 10 after 10 and 15; 68 minutes there",
    ),
    "notes/densenet-cifar-plateau": Shipped(
        partial(cifar, "densenet-cifar", 20, 128, HALVING),
        "the same with the other schedule of the notes: the rate halves when the loss stalls for 5 epochs",
    ),
    "notes/densenet-bc-40-12": Shipped(
        partial(cifar, "densenet-bc-40-12", 300, 64, STEPS, nesterov=True),
        "stopped in the notes, as 300 epochs would have taken 5.9 hours there",
    ),
}

GROUPS = (
    Group(
        "The classic course on Fashion-MNIST",
        describe(course),
        {name: Shipped(partial(course, row), row.result) for name, row in FASHION_MNIST.items()},
    ),
    Group("The notes' DenseNets on CIFAR-10", describe(cifar), CIFAR),
)
