import copy
from pathlib import Path

import pytest
import torch
from conftest import small_recipe
from torch.nn.functional import cross_entropy

from candid.checkpoint import Checkpoint
from candid.data.loading import Batch
from candid.errors import InputError
from candid.models.auxiliary import AuxiliaryLoss
from candid.recipe import Recipe
from candid.training.loop import Tally, Trainer, train_one_epoch

CPU = torch.device("cpu")


def recipe(**changes: object) -> Recipe:
    base = small_recipe(
        Path("unused"),
        data__image_size=28,
        data__channels=1,
        training__precision="fp32",
        optimizer__nesterov=False,
        optimizer__weight_decay=0.0,
        schedule__name="constant",
        schedule__warmup=0.0,
    )
    return base.replace({key.replace("__", "."): value for key, value in changes.items()})


def batches(sizes: tuple[int, ...] = (12, 12, 5)) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(n, 1, 28, 28, generator=generator),
            torch.eye(3)[torch.randint(0, 3, (n,), generator=generator)],
            torch.arange(n),
        )
        for n in sizes
    ]


def learn(trainer: Trainer, batches: list[Batch]) -> None:
    train_one_epoch(trainer, batches, [], after_step=lambda images: None)


def trained(epochs: int = 2, **changes: object) -> tuple[Trainer, Tally]:
    trainer = Trainer(recipe(**changes), 3, steps_per_epoch=3, device=CPU)
    for _ in range(epochs):
        trainer.start_tally()
        learn(trainer, batches())
    return trainer, trainer.tally


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_an_epoch_equals_the_loop_written_out():
    ours, tally = trained(epochs=1, optimizer__name="sgd", optimizer__rate=0.05)
    model = Trainer(recipe(), 3, 3, CPU).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, correct = [], 0
    for inputs, targets, _ in batches():
        logits = model(inputs)
        loss = cross_entropy(logits, targets)
        losses.append(loss.item() * len(inputs))
        correct += int((logits.argmax(1) == targets.argmax(1)).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert (weights(ours) - expected).abs().max() < 1e-6
    assert ours.step == 3
    assert tally.images == 29
    assert float(tally.loss) == pytest.approx(sum(losses), rel=1e-5)
    assert int(tally.correct) == correct


def test_micro_batches_take_the_same_steps():
    whole, _ = trained(optimizer__name="sgd", optimizer__rate=0.05)
    parts, _ = trained(optimizer__name="sgd", optimizer__rate=0.05, training__micro_batch_size=5)
    assert parts.step == whole.step == 6
    assert (weights(whole) - weights(parts)).abs().max() < 1e-6


def test_a_seed_decides_every_bit_whatever_ran_before():
    one, _ = trained(model__name="densenet-40-12", model__dropout=0.2)
    torch.manual_seed(12345)
    two, _ = trained(model__name="densenet-40-12", model__dropout=0.2)
    other, _ = trained(model__name="densenet-40-12", model__dropout=0.2, seed=1)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_the_average_is_what_is_evaluated_and_follows_its_formula():
    averaged = Trainer(recipe(training__ema_decay=0.3), 3, 3, CPU)
    expected = weights(averaged)
    for step, batch in enumerate(batches(), start=1):
        learn(averaged, [batch])
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights(averaged)
    ours = torch.cat([parameter.detach().flatten() for parameter in averaged.evaluated_model.parameters()])
    assert (ours - expected).abs().max() < 1e-6
    plain, _ = trained(epochs=1)
    assert torch.equal(weights(plain), weights(averaged))  # averaging does not touch the training


def test_clipping_bounds_the_step():
    free, _ = trained(epochs=1, optimizer__name="sgd", optimizer__momentum=0.0)
    start = weights(Trainer(recipe(), 3, 3, CPU))
    clipped, _ = trained(
        epochs=1,
        optimizer__name="sgd",
        optimizer__momentum=0.0,
        optimizer__rate=1.0,
        training__clip_norm=0.001,
    )
    assert float((weights(clipped) - start).norm()) <= 3 * 0.001 * 1.001
    assert float((weights(free) - start).norm()) > 0


def test_label_smoothing_is_torchs():
    trainer = Trainer(recipe(training__label_smoothing=0.1), 3, 3, CPU)
    inputs, targets, _ = batches()[0]
    with torch.no_grad():
        logits, loss = trainer.forward(inputs, targets)
    assert float(loss) == pytest.approx(float(cross_entropy(logits, targets.argmax(1), label_smoothing=0.1)), rel=1e-6)


def deeply_supervised() -> tuple[Trainer, Batch, list[float]]:
    """A trainer of a network with companion classifiers, a batch, and its losses: the main one first."""
    trainer, batch = Trainer(recipe(model__name="dsn", model__dropout=0.0), 3, 3, CPU), batches()[0]
    logits, auxiliary = trainer.model.train()(batch.inputs)
    return trainer, batch, [cross_entropy(one, batch.targets).item() for one in (logits, *auxiliary)]


def test_auxiliary_losses_weigh_what_the_network_says_and_fade_over_the_run():
    trainer, batch, (main, *auxiliary) = deeply_supervised()
    steps = 3 * trainer.recipe.training.epochs
    for step, weight in [(0, 0.1), (steps // 2, 0.05), (steps, 0.0)]:  # dsn: 0.1 * (1 - t / N)
        trainer.step = step
        _, loss = trainer.forward(*batch[:2])
        assert loss.item() == pytest.approx(main + weight * sum(auxiliary), rel=1e-5)


def test_auxiliary_losses_count_from_the_margin_on_and_teach_only_then():
    trainer, batch, (main, *auxiliary) = deeply_supervised()
    margin = sorted(auxiliary)[1]  # of three
    trainer.auxiliary_loss = AuxiliaryLoss(0.3, margin)
    _, loss = trainer.forward(*batch[:2])
    loss.backward()
    assert loss.item() == pytest.approx(main + 0.3 * (max(auxiliary) - margin), rel=1e-5)
    learned = [bool(companion.head.weight.grad.any()) for companion in trainer.model.auxiliary]
    assert learned[auxiliary.index(max(auxiliary))]
    assert not learned[auxiliary.index(min(auxiliary))]


def test_bf16_computes_in_bf16_and_keeps_float32_weights():
    trainer, tally = trained(model__name="resnet20-cifar", training__precision="bf16")
    seen: list[torch.dtype] = []
    trainer.model.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.forward(*batches()[0][:2])
    assert seen == [torch.bfloat16]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert torch.isfinite(tally.loss)


def test_compiled_training_agrees_with_eager():
    eager, _ = trained(epochs=1)
    compiled, _ = trained(epochs=1, training__compile=True)
    assert (weights(eager) - weights(compiled)).abs().max() < 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_restored_trainer_goes_on_bit_for_bit(optimizer: str, ema_decay: float):
    changes = {"optimizer__name": optimizer, "training__ema_decay": ema_decay, "model__name": "lenet-bn"}
    straight, _ = trained(epochs=2, **changes)
    first, _ = trained(epochs=1, **changes)
    from candid.checkpoint import TrainingState
    from candid.data.preprocessing import Preprocessing

    preprocessing = Preprocessing(image_size=28, channels=1, fit="crop", mean=(0.0,), std=(1.0,))
    saved = Checkpoint(
        copy.deepcopy(first.evaluated_model.state_dict()), first.recipe, ("a", "b", "c"), preprocessing, 3, 1, None
    )
    as_files_hold_it = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in first.state_tensors().items()
    }
    state = TrainingState(as_files_hold_it)
    resumed = Trainer(recipe(**changes), 3, 3, CPU)
    resumed.restore(saved, state)
    for parameter, buffers in resumed.optimizer.state.items():
        like_it = [value for value in buffers.values() if value.shape == parameter.shape]
        assert like_it
        assert {value.stride() for value in like_it} == {parameter.stride()}
    learn(resumed, batches())
    assert torch.equal(weights(straight), weights(resumed))
    for a, b in zip(
        straight.evaluated_model.state_dict().values(), resumed.evaluated_model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_dropout_of_a_network_without_any_is_refused():
    with pytest.raises(InputError) as caught:
        Trainer(recipe(model__dropout=0.2), 3, 3, CPU)
    assert str(caught.value) == ("dropout is 0.2, but lenet-relu has none. Set it to 0, or choose another network.")
