"""Where to start: the built-in pictures, and photographs of your own."""

from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Training
from candid.recipes.shipped import Group, written


def default() -> Recipe:
    """LeNet with ReLU on the 6,000 pictures that ship with candid, in about half a minute."""
    return Recipe(
        data=Data(name="fashion-mnist-mini"),
        augmentation=Augmentation(crop_padding=1),
        model=Model(name="lenet-relu"),
        training=Training(epochs=60),
        optimizer=Optimizer(weight_decay=2e-3),
    )


def photos() -> Recipe:
    """ResNet-20 for a folder of small photographs: shifted and mirrored, labels smoothed; give the folder as --data."""
    return Recipe(
        augmentation=Augmentation(crop_padding=4, mirror=True),
        model=Model(name="resnet20-cifar"),
        training=Training(epochs=30, label_smoothing=0.1),
    )


GROUPS = (Group("To start with", "", {"default": written(default), "photos": written(photos)}),)
