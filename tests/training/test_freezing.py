from pathlib import Path

import pytest
import torch
from conftest import small_recipe
from torch import nn

from candid.data.loading import Batch
from candid.errors import InputError
from candid.recipe import Recipe, RecipeError
from candid.training.freezing import Freezing, plan_freezing
from candid.training.loop import Trainer, train_one_epoch

CPU = torch.device("cpu")
BATCH = Batch(
    torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.eye(3)[[0, 1, 2, 0]], torch.arange(4)
)


def recipe(name: str = "resnet20-cifar", **changes: object) -> Recipe:
    settings = {"model__weights": "elsewhere.safetensors", "schedule__warmup": 0.0} | changes
    return small_recipe(Path("unused"), model__name=name, data__image_size=32, data__channels=3, **settings)


def frozen_parts(name: str, freeze: str) -> list[str]:
    parts = plan_freezing(recipe(name, model__freeze=freeze), 3).parts
    return [".".join(part[0].split(".")[:2]) for part in parts]


def learn(trainer: Trainer, batches: list[Batch]) -> None:
    train_one_epoch(trainer, batches, [], after_step=lambda images: None)


def trained(epochs: int, **changes: object) -> tuple[dict[str, torch.Tensor], Trainer]:
    """The values before, and the trainer after some epochs of two steps."""
    trainer = Trainer(recipe(**changes), 3, steps_per_epoch=2, device=CPU)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(epochs):
        learn(trainer, [BATCH, BATCH])
    return before, trainer


def changed(before: dict[str, torch.Tensor], trainer: Trainer) -> set[str]:
    after = trainer.model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_nothing_is_frozen_unless_asked():
    assert plan_freezing(recipe(), 3) == Freezing()


def test_parts_come_in_the_order_of_the_data():
    assert frozen_parts("resnet20-cifar", "backbone") == ["stem.0", "stem.1", "stages.0", "stages.1", "stages.2"]
    expected = ["stem.0", "blocks.0", "transitions.0", "blocks.1", "transitions.1"]  # not as they are registered
    assert frozen_parts("densenet-bc-100-12", "until:blocks.2") == expected


@pytest.mark.parametrize("name", ["resnet20-cifar", "densenet-40-12", "lenet-bn"])
def test_a_frozen_backbone_keeps_every_value_and_every_statistic(name: str):
    before, trainer = trained(1, name=name, model__freeze="backbone")
    assert changed(before, trainer) == {"head.weight", "head.bias"}
    assert set(trainer.optimizer.state) == set(trainer.model.head.parameters())


def test_freezing_until_a_part_trains_it_and_what_follows():
    before, trainer = trained(1, model__freeze="until:stages.2")
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in changed(before, trainer)} == {
        "stages.2",
        "head.weight",
        "head.bias",
    }


def test_a_frozen_layer_computes_with_the_statistics_it_was_loaded_with():
    _, trainer = trained(0, model__freeze="backbone")
    images = torch.randn(4, 3, 32, 32)
    trainer.model.eval()
    expected = trainer.model(images)
    trainer.start_epoch()
    assert torch.equal(trainer.model(images), expected)


def test_parts_are_set_free_one_by_one_from_the_last():
    freezing = plan_freezing(recipe(model__freeze="until:stages.2", model__unfreeze_every=2), 3)
    numbers = [len({name.split(".")[1] for name in freezing.frozen(epoch) if "stages" in name}) for epoch in range(7)]
    assert numbers == [2, 2, 1, 1, 0, 0, 0]
    assert freezing.frozen(8) == set()
    assert freezing.frozen(100) == set()


def test_unfrozen_parts_learn_from_their_epoch_on():
    changes = {"model__freeze": "backbone", "model__unfreeze_every": 1}
    before, first = trained(1, **changes)
    assert changed(before, first) == {"head.weight", "head.bias"}
    before, second = trained(2, **changes)
    assert {name for name in changed(before, second) if not name.startswith("head")} == {
        name for name in before if name.startswith("stages.2")
    }


def test_the_head_learns_at_its_own_rate():
    plain, fast = trained(0)[1], trained(0, optimizer__head_factor=10.0)[1]
    for trainer in (plain, fast):
        learn(trainer, [])
    groups = {len(group["params"]): group["rate_factor"] for group in fast.optimizer.param_groups}
    assert groups[2] == 10.0
    assert {group["rate_factor"] for group in plain.optimizer.param_groups} == {1.0}
    assert {id(p) for p in fast.model.head.parameters()} == {
        id(p) for group in fast.optimizer.param_groups if group["rate_factor"] == 10 for p in group["params"]
    }


def test_ten_times_the_head_rate_is_ten_times_the_first_step():
    settings = {"optimizer__name": "sgd", "optimizer__rate": 0.01, "optimizer__weight_decay": 0.0}
    steps = []
    for factor in (1.0, 10.0):
        trainer = Trainer(recipe(optimizer__head_factor=factor, **settings), 3, steps_per_epoch=2, device=CPU)
        before = [p.detach().clone() for p in (trainer.model.head.weight, trainer.model.stem[0].weight)]
        learn(trainer, [BATCH])
        after = (trainer.model.head.weight, trainer.model.stem[0].weight)
        steps.append([new.detach() - old for new, old in zip(after, before, strict=True)])
    assert torch.allclose(steps[1][0], 10 * steps[0][0], rtol=1e-4, atol=1e-7)
    assert torch.equal(steps[1][1], steps[0][1])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model.freeze": "backbone"},
            "model.freeze is 'backbone', but model.weights is empty, and random weights would stay random. "
            "Use --weights FILE, or freeze none.",
        ),
        (
            {"model.freeze": "back"},
            "model.freeze is 'back'; it must be 'none', 'backbone' or 'until:PART', such as until:stages.2.",
        ),
        (
            {"model.unfreeze_every": 2},
            "model.unfreeze_every is 2, but model.freeze is 'none'; it must be 0, or say what to freeze.",
        ),
        (
            {"model.new_head": True},
            "model.new_head is true, but model.weights is empty; it must be false, or add --weights.",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], text: str):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(changes)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("freeze", "advice"),
    [
        ("until:stage.2", "Did you mean stages.2?"),
        ("until:xyz", "Its parts are stem.0, stem.1, stages.0, stages.1, stages.2, head."),
    ],
)
def test_a_part_that_the_network_does_not_have_is_named_with_those_it_has(freeze: str, advice: str):
    with pytest.raises(InputError) as caught:
        Trainer(recipe(model__freeze=freeze), 3, 2, CPU)
    assert str(caught.value) == f"model.freeze is {freeze!r}, but resnet20-cifar has no such part. {advice}"


def test_layers_without_values_are_never_frozen():
    _, trainer = trained(0, model__freeze="backbone")
    assert all(module.training for module in trainer.model.modules() if isinstance(module, nn.ReLU))
