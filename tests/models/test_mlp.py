import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model

torch.set_num_threads(1)


def reference(relu: bool, state: State, x: Tensor, training: bool) -> Tensor:
    """Three matrix products over the pixels, channel by channel and row by row."""
    x = x.reshape(len(x), -1)
    for number in (1, 2):
        x = x @ state[f"linear{number}.weight"].T + state[f"linear{number}.bias"]
        if (norm := f"norm{number}") + ".weight" in state:
            mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            x = F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training)
        x = x.clamp(min=0) if relu else x
    return x @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize(("name", "norms"), [("mlp-linear", 0), ("mlp-relu", 0), ("mlp-bn", 2)])
@pytest.mark.parametrize("side", [28, 9])
def test_is_three_matrix_products(name: str, norms: int, side: int) -> None:
    model = build_model(name, 7, 3, image_size=side)
    assert sum("running_mean" in key for key in model.state_dict()) == norms

    def three_products(state: State, x: Tensor, training: bool) -> Tensor:
        return reference(name != "mlp-linear", state, x, training)

    assert_same_network(model, three_products, random_images(4, 3, side))


def test_widths_at_28_px_are_784_300_100() -> None:
    with torch.device("meta"):
        model = build_model("mlp-relu", 10, 1)
    assert [tuple(layer.weight.shape) for layer in (model.linear1, model.linear2, model.head)] == [
        (300, 784),
        (100, 300),
        (10, 100),
    ]


def test_bare_layers_make_one_linear_map() -> None:
    torch.manual_seed(0)
    model, (one, other) = build_model("mlp-linear", 10, 1).double(), random_images(2, 1, 28).double()[:, None]
    middle = model(one / 2 + other / 2)
    assert (middle - model(one) / 2 - model(other) / 2).abs().max() < 1e-12


@pytest.mark.parametrize(("name", "gain"), [("mlp-linear", 1), ("mlp-relu", 2), ("mlp-bn", 2)])
def test_initialisation_is_he_fan_in(name: str, gain: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, 100, 1)
    for layer in (model.linear1, model.linear2, model.head):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(gain / layer.in_features), rel=0.05)
        assert layer.bias.eq(0).all()
