import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model
from candid.models.highway import Highway, HighwayConfig, HighwayLayer

torch.set_num_threads(1)


def files_of_the_authors(state: State, x: Tensor, training: bool) -> Tensor:
    """The Caffe network of 19 layers, line by line, with equation 3 in its first form, T and C = 1 - T."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    for stage, num_layers in enumerate((5, 6, 6)):
        if stage > 0:
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        x = F.relu(conv(x, f"stages.{stage}.conv"))
        for layer in range(num_layers - 1):
            place = f"stages.{stage}.layers.{layer}"
            transform = 1 / (1 + torch.exp(-conv(x, f"{place}.gate")))
            carry = 1 - transform
            x = transform * F.relu(conv(x, f"{place}.state")) + carry * x
    x = F.relu(conv(x, "conv"))
    x = F.avg_pool2d(x, kernel_size=x.shape[-1]).flatten(1)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("side", [8, 11])
def test_is_the_network_of_the_authors_files(side: int) -> None:
    model = build_model("highway19", 7, dropout=0.0)
    generator = torch.Generator().manual_seed(4)
    for name, value in model.named_parameters():
        if name.endswith("bias"):  # all start at 0 or -2, so that one could stand in for another
            value.data.normal_(0, 0.3, generator=generator)
    assert_same_network(model, files_of_the_authors, random_images(4, 3, side))


def test_has_19_layers_where_a_gate_counts_with_its_state() -> None:
    with torch.device("meta"):
        modules = list(build_model("highway19", 10).modules())
    weighted = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules)
    assert weighted - sum(isinstance(module, HighwayLayer) for module in modules) == 19


def test_an_open_gate_transforms_and_a_closed_one_carries() -> None:
    layer, x = HighwayLayer(4), random_images(2, 4, 5)
    for weight in (layer.gate.weight, layer.gate.bias):
        nn.init.zeros_(weight)
    with torch.no_grad():
        assert torch.allclose(layer(x), (layer.state(x).relu() + x) / 2)  # half open
        layer.gate.bias.fill_(-200.0)
        assert torch.equal(layer(x), x)
        layer.gate.bias.fill_(200.0)
        assert torch.equal(layer(x), layer.state(x).relu())


def relative_changes(gate_bias: float) -> list[float]:
    """What each highway layer of a fresh network changes, as a share of its input."""
    torch.manual_seed(0)
    model, changes = Highway(HighwayConfig(gate_bias=gate_bias), 10).eval(), []
    for layer in (module for module in model.modules() if isinstance(module, HighwayLayer)):
        layer.register_forward_hook(lambda _, x, y: changes.append(((y - x[0]).norm() / x[0].norm()).item()))
    with torch.no_grad():
        model(random_images(4, 3, 16))
    assert len(changes) == 4 + 5 + 5
    return changes


def test_a_fresh_layer_carries_most_of_its_input() -> None:
    assert max(relative_changes(HighwayConfig().gate_bias)) < 0.4
    assert min(relative_changes(2.0)) > 0.6  # gates that begin open do not


def test_dropout_is_on_the_image_after_each_pooling_and_before_the_head() -> None:
    model, order = build_model("highway19", 10), []
    places = (nn.Dropout, nn.MaxPool2d, nn.Conv2d, nn.Linear)
    for module in model.modules():
        if isinstance(module, places):
            module.register_forward_hook(lambda module, *_: order.append(module))
    with torch.no_grad():
        model(random_images(2, 3, 8))
    kinds = "".join("DPCL"[next(i for i, kind in enumerate(places) if isinstance(m, kind))] for m in order)
    assert kinds == "DC" + 4 * "CC" + "PDC" + 5 * "CC" + "PDC" + 5 * "CC" + "C" + "DL"
    assert {module.p for module in order if isinstance(module, nn.Dropout)} == {0.2}


def test_initialisation_is_he_fan_in_with_nearly_closed_gates() -> None:
    torch.manual_seed(0)
    model = build_model("highway19", 100)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
            assert module.bias.eq(-2.0 if name.endswith("gate") else 0.0).all()
    assert model.head.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.head.bias.eq(0).all()
