import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters, find_variant
from candid.models.auxiliary import AuxiliaryLoss, SupervisedLogits

torch.set_num_threads(1)


def configuration(state: State, x: Tensor, training: bool) -> Tensor | SupervisedLogits:
    """The authors' published network for CIFAR-10: companions read convolutions, the head is not rectified."""

    def layer(x: Tensor, place: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, state[f"{place}.weight"], state[f"{place}.bias"], padding=padding)

    companions = []
    for number, padding in enumerate((2, 2, 1)):
        if number > 0:
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)  # even sides, rounded up
        x = layer(x, f"blocks.{number}.conv", padding)
        weight, bias = state[f"auxiliary.{number}.head.weight"], state[f"auxiliary.{number}.head.bias"]
        companions.append(x.reshape(len(x), -1) @ weight.T + bias)
        x = F.relu(layer(F.relu(x), f"blocks.{number}.perceptron.1"))
        x = F.relu(layer(x, f"blocks.{number}.perceptron.3")) if number < 2 else layer(x, "head")
    logits = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return SupervisedLogits(logits, tuple(companions)) if training else logits


def test_is_the_configuration_of_the_authors() -> None:
    assert_same_network(build_model("dsn", 7, image_size=16, dropout=0.0), configuration, random_images(2, 3, 16))


def test_companions_read_the_first_convolution_of_each_block_at_the_papers_size() -> None:
    with torch.device("meta"):
        features = [companion.head.in_features for companion in build_model("dsn", 10).auxiliary]
    assert features == [192 * 32 * 32, 192 * 16 * 16, 192 * 8 * 8]


def test_companions_fade_over_the_run() -> None:
    assert find_variant("dsn").auxiliary_loss == AuxiliaryLoss(weight=0.1, margin=0.0, fades=True)


def test_dropout_follows_both_poolings() -> None:
    assert [m.p for m in build_model("dsn", 10).modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_initialisation_is_that_of_the_configuration() -> None:
    torch.manual_seed(0)
    model = build_model("dsn", 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.05, rel=0.05)
    for companion in model.auxiliary:
        bound = math.sqrt(3 / companion.head.in_features)  # a variance of 1 / fan in
        assert companion.head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert bound * 0.98 < companion.head.weight.abs().max() <= bound
        assert companion.head.bias.eq(0).all()


def test_count_is_that_of_nin_and_the_companions() -> None:
    companions = sum((192 * side**2 + 1) * 10 for side in (32, 16, 8))
    assert count_parameters("dsn", 10) == count_parameters("nin", 10) + companions
