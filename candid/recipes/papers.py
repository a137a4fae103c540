"""Recipes of the papers, as their text gives them."""

from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Schedule, Training


def resnet20() -> Recipe:
    """ResNet-20 of He et al. 2016, section 4.2, on CIFAR-10: 8.75 % error there.

    64,000 iterations of batch 128 on 45,000 pictures are 182 epochs; the rate falls at 32,000 and 48,000.
    """
    return _cifar("resnet20-cifar", epochs=182, batch_size=128, nesterov=False)


def densenet_40_12() -> Recipe:
    """DenseNet (L = 40, k = 12) of Huang et al. 2017, section 4.2, on augmented CIFAR-10: 5.24 % error there."""
    return _cifar("densenet-40-12", epochs=300, batch_size=64, nesterov=True)


def densenet_bc_100_12() -> Recipe:
    """DenseNet-BC (L = 100, k = 12) of Huang et al. 2017, section 4.2, on augmented CIFAR-10: 4.51 % error there."""
    return _cifar("densenet-bc-100-12", epochs=300, batch_size=64, nesterov=True)


def _cifar(model: str, epochs: int, batch_size: int, *, nesterov: bool) -> Recipe:
    """What both papers share: SGD at 0.1 divided by 10 at 50 % and 75 %, pad 4 and crop, mirror."""
    return Recipe(
        data=Data(name="cifar10"),
        augmentation=Augmentation(crop_padding=4, mirror=True),
        model=Model(name=model),
        training=Training(epochs=epochs, batch_size=batch_size),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=nesterov, weight_decay=1e-4),
        schedule=Schedule(name="multi-step", warmup=0.0, milestones=(0.5, 0.75), factor=0.1),
    )
