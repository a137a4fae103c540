"""A value that is not finite, wherever it appears, stops the run within a step, is named, and is in no checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import silent, small_recipe
from test_loop import CPU, batches, recipe, weights

from candid.checkpoint import Checkpoint, RunFolder, TrainingState
from candid.comparison import compare_runs
from candid.data.catalog import open_data_set
from candid.data.loading import open_training_data
from candid.data.preprocessing import Preprocessing
from candid.errors import CandidError
from candid.randomness import shuffled
from candid.recipe import Recipe
from candid.training.loop import Diverged, Trainer, train_one_epoch
from candid.training.run import resume_run, train_run
from candid.training.session import Session
from candid.training.setup import resolve_recipe

NAN, INF = math.nan, math.inf
STEPS_PER_EPOCH = 4


def is_at(trainer: Trainer, step: int) -> bool:
    """Whether `step` = 1, 2, ... is being computed."""
    return trainer.step == step - 1


def into_loss(trainer: Trainer, step: int, value: float) -> None:
    trainer.model.head.register_forward_hook(
        lambda layer, inputs, logits: logits + value if layer.training and is_at(trainer, step) else None
    )


def into_gradient(trainer: Trainer, step: int, value: float) -> None:
    def change(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0, 2, 2] = value if is_at(trainer, step) else gradient[0, 0, 2, 2]
        return gradient

    trainer.model.conv1.weight.register_hook(change)


def into_weight(trainer: Trainer, step: int, value: float) -> None:
    def change(*_: object) -> None:
        if is_at(trainer, step):
            trainer.model.linear1.bias.data[7] = value

    trainer.optimizer.register_step_post_hook(change)


def into_statistic(trainer: Trainer, step: int, value: float) -> None:
    def change(layer: torch.nn.Module, *_: object) -> None:
        if layer.training and is_at(trainer, step):
            layer.running_var.data[3] = value

    trainer.model.norm2.register_forward_hook(change)


@pytest.fixture(scope="module")
def settings(pictures: Path) -> Recipe:
    return small_recipe(pictures, model__name="lenet-bn", training__epochs=2, limits__save_every="1step")


@pytest.fixture(scope="module")
def straight(settings: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_run(settings, tmp_path_factory.mktemp("straight") / "run", reporter=silent())


def train_with(injected: Callable[[Session], None], settings: Recipe, out: Path) -> str:
    """What is said about the divergence of a run into which something is injected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "begin", lambda session, start: injected(session))
        with pytest.raises(CandidError) as caught:
            train_run(settings, out, reporter=silent())
    assert type(caught.value) is CandidError
    assert set(RunFolder.open(out).verify().values()) <= {None}  # which includes that all values are finite
    return str(caught.value)


def explanation(settings: Recipe, step: int, what: str) -> str:
    """The whole text, with the first files of the step's batch."""
    data_set = open_data_set(settings.data.name)
    resolved = resolve_recipe(settings, data_set, CPU)
    files = open_training_data(data_set, resolved).train.files
    epoch, number = divmod(step - 1, STEPS_PER_EPOCH)
    batch = shuffled(len(files), settings.seed, "order", epoch).split(settings.training.batch_size)[number].tolist()
    rate = Trainer(resolved, 3, STEPS_PER_EPOCH, CPU).schedule.rate(step - 1)
    return (
        f"Training diverged at step {step} (epoch {epoch + 1}, rate {rate:g}): {what}. "
        f"The batch: {', '.join(files[index] for index in batch[:3])} and {len(batch) - 3} more. Nothing of this step "
        "was saved. Lower optimizer.rate (now 0.003), or set schedule.warmup or training.clip_norm."
    )


@pytest.mark.parametrize("step", [1, 3, STEPS_PER_EPOCH, 6])
@pytest.mark.parametrize(
    ("inject", "value", "what"),
    [
        (into_loss, NAN, "the loss is nan"),
        (into_loss, INF, "the loss is nan"),  # infinity less infinity
        (into_gradient, NAN, "the gradient's norm is nan"),
        (into_gradient, -INF, "the gradient's norm is inf"),
        (into_weight, NAN, "the sum of the weights is nan"),
        (into_weight, -INF, "the sum of the weights is -inf"),
        (into_statistic, NAN, "the sum of the normalisation layers' statistics is nan"),
        (into_statistic, INF, "the sum of the normalisation layers' statistics is inf"),
    ],
)
def test_the_run_stops_within_the_step_and_saves_nothing_of_it(
    inject: Callable[[Trainer, int, float], None],
    value: float,
    what: str,
    step: int,
    settings: Recipe,
    straight: RunFolder,
    tmp_path: Path,
):
    out = tmp_path / "run"
    said = train_with(lambda session: inject(session.trainer, step, value), settings, out)
    assert said == explanation(settings, step, what)
    newest = [path.name for path in sorted(RunFolder.open(out).checkpoints.iterdir())][-1:]
    assert newest == [f"step-{step - 1:08d}"] * (step > 1)
    if step == 3:
        found = compare_runs(straight, resume_run(out, reporter=silent()))
        assert found.are_equal, found
        assert found.equal_checkpoints


def write_after(step: int, name: str, value: float) -> Callable[[Session], None]:
    """Write a value into the network when a step is complete, as other code in the process could."""

    def inject(session: Session) -> None:
        after_step = session._after_step

        def write_and_go_on(images: int) -> None:
            if session.trainer.step == step:
                tensor = session.trainer.model.state_dict()[name]
                tensor[(1,) * tensor.dim()] = value
            after_step(images)

        session._after_step = write_and_go_on

    return inject


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("conv1.weight", NAN, "the loss is nan"),
        ("linear1.bias", -INF, "the loss is nan"),
        ("norm2.running_var", INF, "the sum of the normalisation layers' statistics is inf"),
    ],
)
def test_what_breaks_between_two_steps_stops_the_next_one(
    name: str, value: float, what: str, settings: Recipe, tmp_path: Path
):
    rarely_saved = settings.replace({"limits.save_every": "1epoch"})
    said = train_with(write_after(2, name, value), rarely_saved, tmp_path / "run")
    assert said == explanation(settings, 3, what)


def test_an_infinite_bias_that_no_loss_shows_is_found(settings: Recipe, tmp_path: Path):
    """Behind a ReLU, its unit gives 0 and gets no gradient."""
    relu = settings.replace({"model.name": "lenet-relu", "limits.save_every": "1epoch", "optimizer.weight_decay": 0.0})
    said = train_with(write_after(2, "linear1.bias", -INF), relu, tmp_path / "run")
    assert said == explanation(relu, 3, "the sum of the weights is -inf")


@pytest.mark.parametrize("name", ["conv1.weight", "norm2.running_var"])
@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH])
def test_what_breaks_before_a_save_is_not_saved(name: str, step: int, settings: Recipe, tmp_path: Path):
    said = train_with(write_after(step, name, NAN), settings, tmp_path / "run")
    assert said == (
        f"Training diverged: {name} holds a value that is not finite; expected numbers. Nothing of it was saved. "
        "Lower optimizer.rate, or set schedule.warmup."
    )
    assert RunFolder.open(tmp_path / "run").load("latest").step == step - 1


def fp16_trainer(factor: Callable[[int], float]) -> Trainer:
    """A trainer in fp16, in which a function of the step multiplies a gradient."""
    trainer = Trainer(recipe(training__precision="fp16"), 3, steps_per_epoch=30, device=CPU)
    trainer.model.conv1.weight.register_hook(lambda gradient: gradient * factor(trainer.step))
    return trainer


def train(trainer: Trainer, num_steps: int) -> None:
    train_one_epoch(trainer, batches((4,) * num_steps), [], after_step=lambda images: None)


def test_in_fp16_an_infinite_gradient_costs_a_step_and_half_the_scale():
    trainer = fp16_trainer(lambda step: INF if step == 1 else 1.0)
    train(trainer, 1)
    before = weights(trainer)
    train(trainer, 1)
    assert torch.equal(weights(trainer), before)
    assert trainer.scaler.get_scale() == 2**15
    train(trainer, 1)
    assert not torch.equal(weights(trainer), before)
    assert trainer.step == 3


def test_in_fp16_gradients_that_no_scale_makes_finite_are_a_divergence():
    trainer = fp16_trainer(lambda step: NAN)
    with pytest.raises(Diverged) as caught:
        train(trainer, 30)
    assert str(caught.value) == "the gradient's norm is nan"
    assert trainer.step == 16  # each halved the scale of 2**16; with the next it was below 1
    assert weights(trainer).isfinite().all()


def test_the_scaler_of_fp16_goes_on_where_it_was():
    """It doubles its scale after so many good steps: how many there were is part of what is saved."""
    straight, first, resumed = (fp16_trainer(lambda step: INF if step == 1 else 1.0) for _ in range(3))
    for trainer in (straight, first):
        trainer.scaler.set_growth_interval(4)
    train(straight, 8)
    train(first, 4)
    preprocessing = Preprocessing(image_size=28, channels=1, fit="crop", mean=(0.0,), std=(1.0,))
    saved = Checkpoint(first.model.state_dict(), first.recipe, ("a", "b", "c"), preprocessing, 4, 0, None)
    resumed.restore(saved, TrainingState(first.state_tensors(), [], first.scaler.state_dict()))
    train_one_epoch(resumed, batches((4,) * 8)[4:], [], after_step=lambda images: None)
    assert straight.scaler.get_scale() == 2**16  # halved in the second step, doubled after the sixth
    assert resumed.scaler.state_dict() == straight.scaler.state_dict()
    assert torch.equal(weights(resumed), weights(straight))


def test_in_fp16_gradients_that_are_finite_at_a_small_scale_are_none():
    trainer = fp16_trainer(lambda step: 1.0)
    train(trainer, 1)
    trainer.scaler.update(0.5)
    train(trainer, 1)
    assert trainer.step == 2


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_weights_and_loss_have_no_exemption_in_any_precision(precision: str):
    trainer = Trainer(recipe(training__precision=precision), 3, steps_per_epoch=30, device=CPU)
    batch = batches((4,))[0]
    trainer.refuse_divergence(batch)
    trainer.model.conv1.bias.data[0] = NAN
    with pytest.raises(Diverged, match="^the sum of the weights is nan$"):
        trainer.refuse_divergence(batch)
    trainer.tally.loss += NAN
    with pytest.raises(Diverged, match="^the loss is nan$"):
        trainer.refuse_divergence(batch)
