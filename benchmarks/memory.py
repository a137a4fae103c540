"""Predicted and measured peak memory of real training runs, each in a process of its own.

Run: python -m benchmarks.memory
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.measuring import describe_machine

LOWEST, HIGHEST = 0.95, 1.10
BUDGET_MIB = 2048


@dataclass(frozen=True)
class Case:
    """A training run on pictures of noise: one epoch of few steps, then the evaluation that every run ends with."""

    model: str
    side_px: int
    batch_size: int
    memory: str = "16GiB"
    steps: int = 3
    settings: Mapping[str, object] = field(default_factory=dict[str, object])

    def __str__(self) -> str:
        changes = "".join(f", {key.rpartition('.')[2]}={value}" for key, value in self.settings.items())
        return f"{self.model}, {self.batch_size} at {self.side_px} px{changes}"


@dataclass(frozen=True)
class Outcome:
    """What a run said before and after."""

    predicted_mib: float
    peak_mib: float
    chosen: str
    """Settings that its plan chose."""

    @property
    def ratio(self) -> float:
        """Of the prediction to the measured peak."""
        return self.predicted_mib / self.peak_mib


TEN = (
    Case("resnet18-cifar", 32, 64),
    Case("resnet18-cifar", 32, 64, settings={"optimizer.name": "adam", "training.ema_decay": 0.99}),
    Case("resnet50", 96, 16, settings={"training.memory": "recompute"}),
    Case("wrn-28-10", 32, 16, settings={"training.micro_batch_size": 4, "training.precision": "bf16"}),
    Case("densenet-bc-100-12", 32, 32),
    Case("densenet-40-12", 32, 64, settings={"training.memory": "plain", "training.precision": "fp32"}),
    Case("vgg11-bn", 64, 16),
    Case("mobilenetv2-cifar", 32, 64),
    Case("googlenet-notes", 96, 32, settings={"data.channels": 1}),
    Case("shufflenetv2-1.0", 128, 32),
)
"""Six families and more; with each optimizer, precision and memory mode."""
WITHIN_BUDGET = (
    Case("densenet-notes", 96, 128, "2GiB", settings={"data.channels": 1, "optimizer.name": "adam",
                                                      "training.precision": "fp32"}),
    Case("densenet-bc-100-12", 32, 64, "2GiB", settings={"augmentation.crop_padding": 4, "augmentation.mirror": True,
                                                         "training.precision": "fp32"}),
    Case("wrn-28-10", 32, 128, "2GiB", steps=2, settings={"training.precision": "fp32"}),
    Case("resnet50", 224, 32, "2GiB", steps=2, settings={"training.precision": "fp32"}),
)  # fmt: skip


def main() -> None:
    """Print both tables, a line as soon as it is known."""
    print(f"Peak resident memory of `candid train`, predicted before it begins\n{describe_machine()}", flush=True)
    ratios = [print_outcome(case, outcome) for case, outcome in run_all(TEN)]
    print(
        f"  ratios from {min(ratios):.3f} to {max(ratios):.3f}; bars {LOWEST} and {HIGHEST}\n"
        f"With --memory 2GiB, which is {BUDGET_MIB} MiB",
        flush=True,
    )
    for case, outcome in run_all(WITHIN_BUDGET):
        print_outcome(case, outcome)


def run_all(cases: tuple[Case, ...]) -> Iterator[tuple[Case, Outcome]]:
    """Each case with its outcome."""
    for case in cases:
        with TemporaryDirectory() as folder:
            yield case, run_case(case, Path(folder))


def print_outcome(case: Case, outcome: Outcome) -> float:
    """Print a line; the ratio."""
    print(
        f"  {case!s:<75} predicted {outcome.predicted_mib:7,.0f} MiB, measured {outcome.peak_mib:7,.0f}, "
        f"ratio {outcome.ratio:.3f}  ({outcome.chosen})",
        flush=True,
    )
    return outcome.ratio


def run_case(case: Case, folder: Path) -> Outcome:
    """Train in a fresh process; RuntimeError with what it said where that fails."""
    make_noise(folder / "pictures", case)
    settings = {
        "data.image_size": case.side_px,
        "data.validation": case.batch_size,
        "training.batch_size": case.batch_size,
        "schedule.warmup": 0.0,
        "optimizer.rate": 1e-4,
        **case.settings,
    }
    command = [sys.executable, "-m", "candid", "train", "--data", str(folder / "pictures"), "--model", case.model]
    command += ["--epochs", "1", "--memory", case.memory, "--out", str(folder / "run")]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={str(value).lower()}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed; expected a finished run:\n{done.stderr}")
    result = json.loads((folder / "run" / "result.json").read_text())
    chosen = next(line for line in done.stderr.splitlines() if line.startswith(">"))
    return Outcome(result["predicted_memory_mib"], result["peak_memory_mib"], " ".join(chosen[1:].split()))


def make_noise(folder: Path, case: Case) -> None:
    """A folder of two classes with pictures for all steps, and one batch to validate on."""
    random = np.random.default_rng(0)
    for number in range(case.batch_size * (case.steps + 1)):
        place = folder / "ab"[number % 2] / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (case.side_px, case.side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place, compress_level=0)


if __name__ == "__main__":
    main()
