"""What the usual script does: a torchvision data set, transforms picture by picture, a DataLoader."""

import torch
from torch import Tensor
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
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )


def usual_loader(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches with pad-and-crop and mirror, as the usual script makes them."""
    return DataLoader(CIFAR10InMemory(images, labels), batch_size, shuffle=True, num_workers=workers)


def random_cifar(number: int) -> tuple[Tensor, Tensor]:
    """Noise in the shape of CIFAR-10: uint8 [N, 3, 32, 32] and labels [N]; speed does not depend on what it shows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (number,), generator=generator)
