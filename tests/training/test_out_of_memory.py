"""Memory that runs out, really: a request for more than any machine has fails as every other one would."""

import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import silent, small_recipe
from processes import be_rank, command, free_port, kill, outcome, start
from rich.console import Console
from test_exactness import differences
from torch import Tensor, nn

import candid
from candid.checkpoint import RunFolder
from candid.errors import CandidError
from candid.out_of_memory import OutOfMemory, WithinMemory, is_out_of_memory
from candid.recipe import Recipe
from candid.training import loop
from candid.training.loop import Trainer
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.stopping import Stopped
from candid.workflow import verify

TOO_MUCH = 2**50


def exhaust() -> None:
    """What happens when there is no more memory."""
    torch.empty(TOO_MUCH)


class Failing:
    """Calls a function, but first runs out of memory wherever `when` says so, for as long as it does."""

    def __init__(self, function: Callable[..., object], when: Callable[..., bool]) -> None:
        self.function, self.when, self.calls = function, when, 0

    def __get__(self, owner: object, kind: type) -> Callable[..., object]:
        return lambda *arguments, **options: self(owner, *arguments, **options)

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        if self.when(self.calls, *arguments):
            exhaust()
        return self.function(*arguments, **options)


def fail_in(patch: pytest.MonkeyPatch, owner: object, name: str, when: Callable[..., bool]) -> None:
    patch.setattr(owner, name, Failing(getattr(owner, name), when))


def reported(pictures: Recipe, out: Path) -> tuple[RunFolder, str]:
    """A run and what it said."""
    with (out.parent / "said.txt").open("w") as file:
        console = Console(file=file, width=1000, highlight=False)
        run = train_run(pictures, out, reporter=Reporter(console))
    return run, (out.parent / "said.txt").read_text()


def switched(recipe: Recipe, out: Path, step: int, size: int) -> Path:
    """A run that was told to use smaller micro-batches after `step` steps."""
    if step:
        with pytest.raises(Stopped):
            train_run(recipe, out, last_step=step, reporter=silent())
        smaller = RunFolder.open(out).recipe.replace({"training.micro_batch_size": size})
        return resume_run(out, smaller, {"training.micro_batch_size"}, reporter=silent()).path
    return train_run(recipe.replace({"training.micro_batch_size": size}), out, reporter=silent()).path


@pytest.fixture
def recipe(pictures: Path) -> Recipe:
    """Batches of 16 in 4 steps an epoch; with nothing that makes one micro-batch another than its examples do."""
    return small_recipe(pictures, training__epochs=3, augmentation__crop_padding=2, training__ema_decay=0.9)


def larger_than(size: int, step: int) -> Callable[..., bool]:
    """In a forward pass of step `step` with more than `size` examples."""
    return lambda _, trainer, inputs, targets: trainer.step == step and len(inputs) > size


@pytest.mark.parametrize("step", [0, 1, 5, 7])
def test_the_micro_batch_is_halved_and_all_else_stays(
    recipe: Recipe, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = switched(recipe, tmp_path / "expected", step, 8)
    with monkeypatch.context() as patch:
        fail_in(patch, Trainer, "forward", larger_than(8, step))
        run, said = reported(recipe, tmp_path / "run")
    assert without_recorded(differences(run.path, expected)) == []
    assert run.recipe == RunFolder.open(expected).recipe
    line = f"Out of memory at step {step + 1}: micro-batches of 8 from here on; every step still learns from the same "
    assert said.count(f"{line}16 examples.\n") == 1


def without_recorded(names: list[str]) -> list[str]:
    """The differences but for where the best was found before the switch, whose recipe is then the first one."""
    return [name for name in names if name != "best state"]


@pytest.mark.parametrize("name", ["backward", "clip_grad_norm_"])
def test_nothing_of_a_step_that_was_broken_off_remains(
    recipe: Recipe, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After some micro-batches of the step were done, whose statistics, totals and gradients must not count twice."""
    recipe = recipe.replace({"model.name": "lenet-bn", "training.micro_batch_size": 8, "training.clip_norm": 1.0})
    expected = switched(recipe, tmp_path / "expected", 5, 4)
    owner, call_number = (Tensor, 5 * 2 + 2) if name == "backward" else (loop, 6)
    with monkeypatch.context() as patch:
        fail_in(patch, owner, name, lambda calls, *_: calls == call_number)
        run, said = reported(recipe, tmp_path / "run")
    assert without_recorded(differences(run.path, expected)) == []
    assert (
        "Out of memory at step 6: micro-batches of 4 from here on; every step still learns from the same 16 examples. "
        "Batch normalisation takes its statistics from 4 at a time.\n"
    ) in said


def is_in_optimizer() -> bool:
    return any(Path(frame.filename).parent.name == "optim" for frame in traceback.extract_stack(limit=8))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_buffers_that_the_optimizer_could_not_make_are_made_again(
    recipe: Recipe, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = recipe.replace({"optimizer.name": name})
    expected = switched(recipe, tmp_path / "expected", 0, 8)
    with monkeypatch.context() as patch:
        owner, function = (Tensor, "clone") if name == "sgd" else (torch, "zeros_like")
        buffers = iter(range(1, 1000))
        fail_in(patch, owner, function, lambda *_: is_in_optimizer() and next(buffers) == 3)
        run, said = reported(recipe, tmp_path / "run")
    assert "Out of memory at step 1: micro-batches of 8 from here on;" in said
    assert without_recorded(differences(run.path, expected)) == []


def test_a_step_torn_by_the_optimizer_is_not_saved(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = recipe.replace({"optimizer.name": "sgd"})
    straight = train_run(recipe, tmp_path / "straight", reporter=silent()).path
    with monkeypatch.context() as patch:
        fail_in(patch, Trainer, "update_average", lambda calls, *_: calls == 6)
        with pytest.raises(CandidError) as caught:
            train_run(recipe, tmp_path / "run", reporter=silent())
    assert str(caught.value) == (
        "Out of memory at step 7, while the weights were being changed, which cannot be taken back; nothing of this "
        "step was saved. Earlier checkpoints are whole. Set training.memory=recompute, choose a smaller network or "
        "data.image_size, or close other programs. Go on with "
        f"`candid train --resume --out {tmp_path / 'run'}`."
    )
    assert differences(resume_run(tmp_path / "run", reporter=silent()).path, straight) == []


def test_the_smallest_micro_batch_ends_the_run_and_what_is_done_is_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = switched(recipe, tmp_path / "expected", 5, 1)
    with monkeypatch.context() as patch:
        fail_in(patch, Trainer, "forward", larger_than(0, 5))
        with pytest.raises(OutOfMemory) as caught:
            train_run(recipe, tmp_path / "run", reporter=silent())
    assert str(caught.value) == (
        "Out of memory at step 6 with micro-batches of 1, which cannot be smaller. Set training.memory=recompute, "
        "choose a smaller network or data.image_size, or close other programs.\n"
        f"Everything up to step 5 of 12 is saved; when that is mended, go on with `candid train --resume --out "
        f"{tmp_path / 'run'}`."
    )
    assert caught.value.exit_code == 1
    assert all(problem is None for problem in verify(tmp_path / "run").values())
    assert without_recorded(differences(resume_run(tmp_path / "run", reporter=silent()).path, expected)) == []


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_stopped_and_resumed_it_is_the_run_that_was_not_stopped(
    recipe: Recipe, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = recipe.replace({"model.name": "lenet-bn"})
    with monkeypatch.context() as patch:
        fail_in(patch, Trainer, "forward", larger_than(8, 5))
        straight = train_run(recipe, tmp_path / "straight", reporter=silent()).path
        with pytest.raises(Stopped):
            train_run(recipe, tmp_path / "run", last_step=stop, reporter=silent())
        resume_run(tmp_path / "run", reporter=silent())
    assert differences(tmp_path / "run", straight) == []


def test_a_batch_that_could_not_be_fetched_is_fetched_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = switched(recipe, tmp_path / "expected", 5, 8)
    from candid.data import loading

    with monkeypatch.context() as patch:
        fail_in(patch, loading, "cut_windows", lambda calls, *_: calls == 6)
        run, _ = reported(recipe, tmp_path / "run")
    assert without_recorded(differences(run.path, expected)) == []


def test_evaluation_goes_on_in_smaller_parts(run: Path, pictures: Path, tmp_path: Path):
    predictor = candid.load(run)
    expected = predictor.predict(pictures)
    sizes: list[int] = []
    model = predictor._apply._model
    forward = model.forward

    def narrow(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 3:
            exhaust()
        return forward(inputs)

    model.forward = narrow
    found = predictor.predict(pictures)
    assert [one.classes for one in found] == [one.classes for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)
    assert sizes == [8, 4, *[2] * 36]


def as_rank(rank: int, port: int, arguments: list[str], said: Path) -> None:
    """The command as one rank of two, the second of which runs out of memory at step 3."""
    be_rank(rank, 2, port)
    if rank == 1:
        Trainer.forward = Failing(Trainer.forward, larger_than(0, 2))
    command(arguments, said)


def test_one_of_several_ranks_says_what_to_set(pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, limits__save_every="1step")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    arguments = ["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    port = free_port()
    first, second = (start(as_rank, rank, port, arguments, tmp_path / f"{rank}.txt") for rank in (0, 1))
    try:
        assert outcome(second, timeout_s=60) == 1
    finally:
        kill(first)  # torchrun does so when a rank ends
    assert (tmp_path / "1.txt").read_text() == (
        "Out of memory at step 3, on rank 1: the other ranks wait for its gradients, so that it cannot take the step "
        "again in smaller parts. Earlier checkpoints are whole: start the ranks again, with --resume and "
        "--set training.micro_batch_size=4.\n"
    )
    assert verify(tmp_path / "run")["step-00000001"] is None


class NoRoom(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_empty(TOO_MUCH)


def test_a_single_picture_that_is_too_much_is_said():
    with pytest.raises(OutOfMemory) as caught, torch.inference_mode():
        WithinMemory(NoRoom())(torch.zeros(5, 3, 32, 32))
    assert str(caught.value) == (
        "Out of memory with a single picture of 32 px; expected room for one. Close other programs, or use another "
        "--device."
    )


def test_validation_and_test_give_the_same_in_smaller_parts(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = train_run(recipe, tmp_path / "straight", reporter=silent()).path
    with monkeypatch.context() as patch:
        from candid.models.lenet import LeNet

        fail_in(patch, LeNet, "forward", lambda _, model, inputs: not model.training and len(inputs) > 4)
        run = train_run(recipe, tmp_path / "run", reporter=silent()).path
        evaluation = candid.evaluate(straight)
    assert not set(differences(run, straight)) & {"latest model.safetensors", "latest optimizer.safetensors"}
    for row, expected in zip(RunFolder.open(run).history, RunFolder.open(straight).history, strict=True):
        assert row["validation_accuracy"] == expected["validation_accuracy"]
        assert float(row["validation_loss"]) == pytest.approx(float(expected["validation_loss"]), rel=1e-5)
    assert evaluation.loss == pytest.approx(candid.evaluate(straight).loss, rel=1e-5)


def raised(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of any kind: that is what is asked
        function()
    return caught.value


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (exhaust, True),
        (lambda: np.empty(TOO_MUCH), True),
        (lambda: bytearray(2**62), True),
        (lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), False),
        (lambda: int("many"), False),
    ],
    ids=["torch", "numpy", "python", "shapes", "value"],
)
def test_it_is_told_from_other_errors(function: Callable[[], object], expected: bool):
    assert is_out_of_memory(raised(function)) is expected


@pytest.mark.parametrize("text", ["could not create a primitive", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_libraries_say_it_in_their_own_words(text: str):
    assert is_out_of_memory(RuntimeError(text))


def test_gpus_have_an_error_of_their_own():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
