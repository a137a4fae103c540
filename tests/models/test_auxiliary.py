import pytest
import torch

from candid.models.auxiliary import NO_AUXILIARY_LOSS, AuxiliaryLoss, SupervisedLogits, split_output

LOSSES = [torch.tensor(2.0), torch.tensor(0.5)]


@pytest.mark.parametrize(
    ("loss", "progress", "expected"),
    [
        (AuxiliaryLoss(0.3), 0.0, 0.3 * 2.5),
        (AuxiliaryLoss(0.3), 0.9, 0.3 * 2.5),
        (AuxiliaryLoss(0.1, fades=True), 0.0, 0.1 * 2.5),
        (AuxiliaryLoss(0.1, fades=True), 0.75, 0.1 * 0.25 * 2.5),
        (AuxiliaryLoss(0.1, fades=True), 1.0, 0.0),
        (AuxiliaryLoss(0.3, margin=0.75), 0.5, 0.3 * 1.25),  # the second does not exceed the margin
        (AuxiliaryLoss(0.3, margin=3.0), 0.5, 0.0),
        (NO_AUXILIARY_LOSS, 0.5, 0.0),
    ],
)
def test_weight_margin_and_fading(loss: AuxiliaryLoss, progress: float, expected: float) -> None:
    assert float(loss(LOSSES, progress)) == pytest.approx(expected)


def test_without_auxiliary_classifiers_nothing_is_added() -> None:
    assert AuxiliaryLoss(0.3, margin=1.0)([], 0.5) == 0


def test_a_loss_within_the_margin_teaches_nothing() -> None:
    losses = [torch.tensor(value, requires_grad=True) for value in (2.0, 0.5)]
    AuxiliaryLoss(0.3, margin=1.0)(losses, 0.0).backward()
    assert [float(loss.grad) for loss in losses] == pytest.approx([0.3, 0.0])


def test_output_of_any_network_splits() -> None:
    logits, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert split_output(logits) == SupervisedLogits(logits, ())
    output = SupervisedLogits(logits, (other,))
    assert split_output(output) is output
