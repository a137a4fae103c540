import pytest
import torch
from torch import nn

from candid.models import build_model
from candid.recipe_parts import Optimizer, Schedule
from candid.training.optimization import RateSchedule, build_optimizer, count_stalls, parameter_groups


def rates(epochs: int = 10, steps_per_epoch: int = 5, **settings: object) -> list[float]:
    schedule = RateSchedule(Schedule.model_validate({"warmup": 0.0} | settings), 0.4, steps_per_epoch, epochs)
    return [schedule.rate(step) for step in range(epochs * steps_per_epoch)]


def test_constant_rate():
    assert set(rates(name="constant")) == {0.4}


def test_multi_step_takes_shares_and_epochs():
    expected = [0.4] * 25 + [0.04] * 13 + [0.004] * 12  # 0.75 of 50 steps is 37.5, rounded to even: 38
    assert rates(name="multi-step", milestones=[0.5, 0.75]) == pytest.approx(expected)
    assert rates(name="multi-step", milestones=[3, 6]) == pytest.approx([0.4] * 15 + [0.04] * 15 + [0.004] * 20)


def test_cosine_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(name="cosine") == pytest.approx(expected)


def test_warmup_rises_to_the_peak_inside_the_epochs():
    result = rates(name="cosine", warmup=2)
    assert result == rates(name="cosine", warmup=0.2)
    assert result[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert result[10] == pytest.approx(0.4)
    assert len(result) == 50
    assert result[-1] < 0.01


def test_one_cycle_rises_and_falls_in_straight_lines():
    result = rates(name="one-cycle", warmup=2)
    assert result[9] == pytest.approx(0.4)
    falls = [a - b for a, b in zip(result[10:-1], result[11:], strict=True)]
    assert falls == pytest.approx([0.4 / 40] * 39)
    assert result[-1] == pytest.approx(0.4 / 40)


def test_plateau_waits_for_its_patience():
    schedule = RateSchedule(Schedule(name="plateau", warmup=0.0, factor=0.5, patience=2), 0.4, 5, 10)
    assert schedule.rate(20, [3.0, 2.0, 1.0]) == 0.4
    assert schedule.rate(20, [3.0, 2.0, 2.5]) == 0.4
    assert schedule.rate(20, [3.0, 2.0, 2.5, 2.0]) == 0.2
    assert count_stalls([3, 2, 2, 2, 2, 2, 1], patience=2) == 2


def test_norms_and_biases_can_be_exempt_from_decay():
    model = build_model("resnet20-cifar", 10)
    decayed, exempt = parameter_groups(Optimizer(weight_decay=1e-4, decay_norms_and_biases=False), model)
    assert decayed["weight_decay"] == 1e-4
    assert exempt["weight_decay"] == 0
    assert {parameter.dim() for parameter in decayed["params"]} == {2, 4}
    assert {parameter.dim() for parameter in exempt["params"]} == {1}
    both = parameter_groups(Optimizer(weight_decay=1e-4), model)
    assert len(both) == 1
    assert len(both[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (Optimizer(name="sgd", nesterov=True), torch.optim.SGD),
        (Optimizer(name="adam"), torch.optim.Adam),
        (Optimizer(name="adamw"), torch.optim.AdamW),
    ],
)
def test_optimizers_are_torchs(settings: Optimizer, kind: type):
    optimizer = build_optimizer(settings, nn.Linear(2, 2))
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.07
