"""What the usual script does: a torchvision data set, transforms picture by picture, a DataLoader."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR10InMemory(datasets.CIFAR10):
    """torchvision's CIFAR-10 with pictures that are given instead of read from its archive."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """`images` uint8 [N, 3, 32, 32]."""
        self.data = images.permute(0, 2, 3, 1).numpy()
        self.targets = labels.tolist()
        self.target_transform = None
        self.transform = usual_transforms()


def usual_transforms() -> transforms.Compose:
    """Pad-and-crop, mirror and normalisation of a PIL picture of 32x32."""
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def usual_loader(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches with pad-and-crop and mirror, as the usual script makes them, by workers that stay."""
    data = CIFAR10InMemory(images, labels)
    return DataLoader(data, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def usual_script(network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """An epoch of the usual script, in fp32 and NCHW."""
    optimizer = usual_sgd(network)

    def epoch() -> None:
        network.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step()

    return epoch


def usual_sgd(network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the usual script; its rate is low, so that no network's loss leaves the numbers."""
    return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)


def random_cifar(number: int, side_px: int = 32) -> tuple[Tensor, Tensor]:
    """Noise as CIFAR-10 has pictures: uint8 [N, 3, side, side], labels [N]; speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, side_px, side_px), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (number,), generator=generator)
