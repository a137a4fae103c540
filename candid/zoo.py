"""The list of networks as it ships, models/table.csv, for those who would rather not wait for torch."""

import csv
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Entry:
    """A network as it was designed."""

    family: str
    name: str
    channels: int
    image_size: int
    """Side in px."""
    num_classes: int
    parameters: int
    multiply_adds: int
    """Of one image."""
    depth: int
    """Convolutions and linear layers on the longest way from the image to the logits."""

    @property
    def image(self) -> str:
        """Channels and sides, such as "3x224x224"."""
        return f"{self.channels}x{self.image_size}x{self.image_size}"


def read_entries() -> list[Entry]:
    """All networks, family by family."""
    rows = csv.reader((MODELS / "table.csv").read_text(encoding="utf-8").splitlines()[1:])
    return [Entry(family, name, *map(int, numbers)) for family, name, *numbers in rows]


def describe_family(family: str) -> str:
    """The first line of a family's file: what it is and the paper it is from."""
    source = (MODELS / f"{family}.py").read_text(encoding="utf-8")
    return source.partition("\n")[0].strip('".')
