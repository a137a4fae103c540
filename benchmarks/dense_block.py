"""The dense block's three ways to remember, and what others do: time, bytes saved for the way back, peak memory.

Run: python -m benchmarks.dense_block
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring import describe_machine, fastest
from candid.models import build_model
from candid.models.densenet import DenseBlock

ROUNDS = 6
CHANNELS_LAST = torch.channels_last


@dataclass(frozen=True)
class Work:
    """One line of work, and the contenders that do it."""

    title: str
    batch_size: int
    image_size: int
    contenders: dict[str, Callable[[], nn.Module]]
    bars: list[tuple[str, str, float, float, float]]
    """A contender, against whom, and the largest share of time, of bytes saved and of memory; 0 is no bar."""
    precision: str = "fp32"
    trains: bool = True


def checkpointed(network: nn.Module) -> nn.Module:
    """The plain network whose layers keep their input alone and compute the rest again, as the usual code does."""
    for block in (module for module in network.modules() if isinstance(module, DenseBlock)):
        for layer in block.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return network


def modes(name: str, num_classes: int) -> dict[str, Callable[[], nn.Module]]:
    """candid's network in its three ways to remember."""
    return {
        memory: partial(build_model, name, num_classes, memory=memory) for memory in ("plain", "shared", "recompute")
    }


def torchvision_modes() -> dict[str, Callable[[], nn.Module]]:
    """torchvision's densenet121, which calls its checkpointed form memory efficient."""
    return {
        f"torchvision{', checkpointed' if efficient else ''}": partial(
            torchvision.models.densenet121, memory_efficient=efficient
        )
        for efficient in (False, True)
    }


BC, PLAIN = "densenet-bc-100-12", "densenet-40-12"
WORK = [
    Work(
        f"{BC}, training",
        64,
        32,
        modes(BC, 10) | {"checkpointed": lambda: checkpointed(build_model(BC, 10, memory="plain"))},
        [
            ("shared", "plain", 0.90, 0.22, 0.40),
            ("recompute", "plain", 0.90, 0.10, 0.25),
            ("shared", "checkpointed", 0.82, 0.60, 0),
            ("recompute", "checkpointed", 0.82, 0.26, 0),
        ],
    ),
    Work(
        f"{BC}, training",
        64,
        32,
        modes(BC, 10),
        [("shared", "plain", 0.90, 0.25, 0), ("recompute", "plain", 0.90, 0.25, 0)],
        precision="bf16",
    ),
    Work(f"{PLAIN}, training", 64, 32, modes(PLAIN, 10), [("shared", "plain", 1.0, 0.25, 0)]),
    Work(
        "densenet121, training",
        8,
        224,
        torchvision_modes() | modes("densenet121", 1000),
        [
            ("shared", "torchvision", 0.90, 0.32, 0),
            ("recompute", "torchvision", 0, 0.18, 0),
            ("shared", "torchvision, checkpointed", 0.95, 0.65, 0),
        ],
    ),
    Work(
        "densenet121, evaluation",
        32,
        224,
        {"torchvision": torchvision_modes()["torchvision"], "candid": modes("densenet121", 1000)["shared"]},
        [("candid", "torchvision", 0.85, 0, 0.60)],
        trains=False,
    ),
]


def main() -> None:
    """Print a table for each line of work."""
    print(f"Dense blocks, channels last; fastest of {ROUNDS - 1} rounds after one to warm up\n{describe_machine()}")
    for number, work in enumerate(WORK):
        print(f"{work.title}: batch {work.batch_size}, {work.image_size} px, {work.precision}")
        calls = {name: prepare(work, build()) for name, build in work.contenders.items()}
        seconds = fastest(calls, ROUNDS - 1)
        saved = {name: bytes_saved(calls[name]) if work.trains else 0 for name in calls}
        memory = {name: measure_apart(number, name) for name in calls}
        for name in calls:
            print(f"  {name:<26}{seconds[name]:8.3f} s{saved[name] / 2**20:9.0f} MiB saved{memory[name]:9.0f} MiB peak")
        for name, against, *bars in work.bars:
            ratios = [table[name] / table[against] if table[against] else 0 for table in (seconds, saved, memory)]
            kinds = zip(("time", "saved", "peak"), ratios, bars, strict=True)
            print(
                f"    {name} / {against}: "
                + ", ".join(f"{kind} {ratio:.2f} (bar {bar:.2f})" for kind, ratio, bar in kinds if bar)
            )


def prepare(work: Work, network: nn.Module) -> Callable[[], None]:
    """What is timed: a step without the optimizer, or a pass in evaluation mode."""
    network = network.to(memory_format=CHANNELS_LAST).train(work.trains)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(work.batch_size, 3, work.image_size, work.image_size, generator=generator)
    images, labels = images.contiguous(memory_format=CHANNELS_LAST), torch.arange(work.batch_size) % 10
    run = partial(learn, labels=labels, precision=work.precision) if work.trains else forward
    return partial(run, network, images)


def learn(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    """Forward and back."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(images)
    cross_entropy(logits.float(), labels).backward()
    network.zero_grad()


@torch.inference_mode()
def forward(network: nn.Module, images: Tensor) -> None:
    """A pass for nobody's gradient."""
    network(images)


def bytes_saved(step: Callable[[], None]) -> int:
    """What one step keeps for the way back, each storage once; weights and images are there anyway."""
    network: nn.Module
    network, images = step.args  # pyright: ignore  # a partial of learn
    there = {tensor.untyped_storage().data_ptr() for tensor in (images, *network.parameters(), *network.buffers())}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(storages.values())


def measure_apart(number: int, name: str) -> float:
    """Peak resident memory in MiB above that before the first step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dense_block", str(number), name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_here(number: int, name: str) -> None:
    """Print what `measure_apart` reads."""
    call = prepare(WORK[number], WORK[number].contenders[name]())
    floor = resident_mib("VmRSS")
    for _ in range(2):
        call()
    print(resident_mib("VmHWM") - floor)


def resident_mib(kind: str) -> float:
    """Resident memory of this process: now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 2**10


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_here(int(sys.argv[1]), sys.argv[2])
    else:
        main()
