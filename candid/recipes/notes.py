"""Recipes of the classic course on Fashion-MNIST."""

from candid.recipe import Recipe
from candid.recipe_parts import Data, Model, Optimizer, Schedule, Training


def lenet() -> Recipe:
    """LeNet with sigmoids as the course trains it: Adam at 1e-3, batch 256, 5 epochs."""
    return _course("lenet", batch_size=256)


def lenet_bn() -> Recipe:
    """LeNet with batch normalisation before each sigmoid: Adam at 1e-3, batch 256, 5 epochs."""
    return _course("lenet-bn", batch_size=256)


def resnet18() -> Recipe:
    """ResNet-18 on 96 px: Adam at 1e-3, batch 256, 5 epochs (0.921 on test in the course)."""
    return _course("resnet18-notes", batch_size=256, image_size=96)


def densenet() -> Recipe:
    """DenseNet of four blocks of four layers on 96 px: Adam at 1e-3, batch 128, 5 epochs."""
    return _course("densenet-notes", batch_size=128, image_size=96)


def _course(model: str, batch_size: int, image_size: int = 28) -> Recipe:
    return Recipe(
        data=Data(name="fashion-mnist", image_size=image_size),
        model=Model(name=model),
        training=Training(epochs=5, batch_size=batch_size),
        optimizer=Optimizer(name="adam", rate=1e-3, weight_decay=0.0),
        schedule=Schedule(name="constant", warmup=0.0),
    )
