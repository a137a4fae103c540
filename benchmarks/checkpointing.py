"""What exactness and saving cost while ResNet-18 (CIFAR form) trains, and how long verifying takes.

Run: python -m benchmarks.checkpointing
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from benchmarks.automatic import CPU, as_data, automatic_recipe
from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import random_cifar
from candid.checkpoint import Checkpoint, RunFolder, TrainingState, build_network
from candid.data.augmentation import cut_windows, mirror
from candid.data.examples import DataSet
from candid.device import AUTOCAST_TYPES
from candid.recipe import Recipe
from candid.training.optimization import build_optimizer
from candid.training.progress import Reporter
from candid.training.ranks import ALONE
from candid.training.session import Session
from candid.training.stopping import Stop

MODEL, BATCH_SIZE = "resnet18-cifar", 128
STEPS, STEPS_BETWEEN_SAVES, ROUNDS = 6, 3, 6
USUAL_STEPS_BETWEEN_SAVES = 200  # far enough apart to be usual, and too far to be waited for here
CHECKPOINT_BYTES = 100_000_000
CLASSES = tuple("abcdefghij")
EXACTNESS_BAR_PERCENT, SAVING_BAR_PERCENT, VERIFYING_BAR_S = 3, 2, 0.5


class UnsavedSession(Session):
    """A session that does everything but save."""

    def _save(self, accuracy: float | None = None, *, is_best: bool = False) -> None:
        pass


def main() -> None:
    """Print what was measured, and what it comes to."""
    images, labels = random_cifar(BATCH_SIZE * STEPS)
    recipe = automatic_recipe(MODEL, BATCH_SIZE).replace(
        {
            "training.epochs": 1,
            "training.deterministic": True,
            "limits.save_every": f"{STEPS_BETWEEN_SAVES}steps",
        }
    )
    with TemporaryDirectory() as folder:
        unsaved = open_session(UnsavedSession, Path(folder) / "unsaved", recipe, images, labels)
        saved = open_session(Session, Path(folder) / "saved", recipe, images, labels)
        seconds = fastest(
            {
                "plain": plain_loop(recipe, images, labels),
                "unsaved": partial(train_again, unsaved),
                "saved": partial(train_again, saved),
            },
            ROUNDS,
        )
        run = save_checkpoint(Path(folder) / "run", recipe, unsaved)
        verifying_s = fastest({"verify": run.verify}, ROUNDS)["verify"]
    print_costs(recipe, seconds["plain"], seconds["unsaved"], seconds["saved"])
    print(
        f"Verifying a checkpoint of {CHECKPOINT_BYTES / 1e6:.0f} MB that the system still holds in memory: "
        f"{verifying_s:.3f} s; bar {VERIFYING_BAR_S} s"
    )


def print_costs(recipe: Recipe, plain_s: float, unsaved_s: float, saved_s: float) -> None:
    """Print the three loops, and what the second adds to the first and the third to the second."""
    saves = STEPS // STEPS_BETWEEN_SAVES
    exactness_percent = 100 * (unsaved_s / plain_s - 1)
    save_s, usual_interval_s = (saved_s - unsaved_s) / saves, USUAL_STEPS_BETWEEN_SAVES * unsaved_s / STEPS
    print(
        f"Training {recipe.model.name} in {recipe.training.precision}, {STEPS} steps of {BATCH_SIZE}; "
        f"fastest of {ROUNDS} rounds\n"
        f"{describe_machine()}\n"
        f"  a plain loop                     {plain_s:8.3f} s\n"
        f"  candid without saving            {unsaved_s:8.3f} s  exactness costs {exactness_percent:+.2f} %; "
        f"bar {EXACTNESS_BAR_PERCENT} %\n"
        f"  candid with {saves} saves              {saved_s:8.3f} s  a save costs {save_s:+.3f} s, the last one waited "
        f"for; every {USUAL_STEPS_BETWEEN_SAVES} steps ({usual_interval_s:.0f} s) that would be "
        f"{100 * save_s / usual_interval_s:+.2f} %; bar {SAVING_BAR_PERCENT} %"
    )


def open_session(kind: type[Session], out: Path, recipe: Recipe, images: Tensor, labels: Tensor) -> Session:
    """A run of one epoch over pictures in memory, about to begin."""
    data = as_data(images, labels)
    data_set = DataSet("noise", CLASSES, 3, 32, {"train": lambda: data.train})
    run = RunFolder.create(out, recipe, {})
    return kind(run, recipe, data_set, data, CPU, Reporter.silent(), ALONE, Stop())


def train_again(session: Session) -> None:
    """The session's only epoch, from its first step on; what was learnt stays, which costs no time."""
    torch.use_deterministic_algorithms(True)
    session.history.clear()
    session.trainer.step = 0
    session.train()


def plain_loop(recipe: Recipe, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The same network, optimizer, pictures, variations and precision, with nothing that makes a run exact.

    The variations are drawn from torch's own generator, nothing is counted, and nothing is looked for that is not
    finite.
    """
    model = build_network(recipe, len(CLASSES))
    optimizer = build_optimizer(recipe.optimizer, model)
    margin, preprocessing = recipe.augmentation.crop_padding, as_data(images, labels).preprocessing
    padded = pad(images.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin)).contiguous()
    dtype = AUTOCAST_TYPES.get(recipe.training.precision)

    def epoch() -> None:
        torch.use_deterministic_algorithms(False)
        model.train()
        for indices in torch.randperm(len(labels)).split(BATCH_SIZE):
            top, left = torch.randint(2 * margin + 1, (2, len(indices)))
            pictures = mirror(cut_windows(padded, indices, top, left, side=32), torch.rand(len(indices)) < 0.5)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                logits = model(preprocessing.normalise(pictures))
            cross_entropy(logits.float(), labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def save_checkpoint(out: Path, recipe: Recipe, session: Session) -> RunFolder:
    """A run with one checkpoint of CHECKPOINT_BYTES: the session's weights, the rest in the optimizer's file."""
    weights = session.trainer.model.state_dict()
    rest = CHECKPOINT_BYTES - sum(tensor.nbytes for tensor in weights.values())
    state = TrainingState({"optimizer.0.momentum_buffer": torch.randn(rest // 4)})
    run = RunFolder.create(out, recipe, {})
    checkpoint = Checkpoint(weights, recipe, CLASSES, session.data.preprocessing, STEPS, 1, None)
    run.save(checkpoint, state, is_best=False)
    return run


if __name__ == "__main__":
    main()
