import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters

torch.set_num_threads(1)

# Springenberg et al. 2015, Table 1, model C, with the poolings of Table 2: channels in and out, side, stride, padding.
MODEL_C = {
    "stage1.0.0": (3, 96, 3, 1, 1),
    "stage1.1.0": (96, 96, 3, 1, 1),
    "stage1.2.0": (96, 96, 3, 2, 1),
    "stage2.0.0": (96, 192, 3, 1, 1),
    "stage2.1.0": (192, 192, 3, 1, 1),
    "stage2.2.0": (192, 192, 3, 2, 1),
    "stage3.0.0": (192, 192, 3, 1, 0),
    "stage3.1.0": (192, 192, 1, 1, 0),
    "head": (192, 10, 1, 1, 0),
}


def model_c(state: State, x: Tensor, training: bool) -> Tensor:
    for place, (*_, stride, padding) in MODEL_C.items():
        x = F.relu(F.conv2d(x, state[f"{place}.weight"], state[f"{place}.bias"], stride, padding))
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.parametrize("side", [16, 17])
def test_is_model_c_of_the_paper(side: int) -> None:
    assert_same_network(build_model("all-cnn-c", 7, dropout=0.0), model_c, random_images(2, 3, side))


def test_the_head_averages_6_by_6_pixels() -> None:
    shapes = []
    with torch.device("meta"):
        model = build_model("all-cnn-c", 10)
        model.head.register_forward_hook(lambda *args: shapes.append(args[-1].shape))
        model(torch.empty(1, 3, 32, 32))
    assert shapes == [(1, 10, 6, 6)]


def test_dropout_is_on_the_input_and_after_each_convolution_of_stride_2() -> None:
    model, order = build_model("all-cnn-c", 10), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Dropout):
            module.register_forward_hook(lambda module, *_: order.append(module))
    with torch.no_grad():
        model(random_images(1, 3, 16))
    found = [f"stride {m.stride[0]}" if isinstance(m, nn.Conv2d) else f"drop {m.p}" for m in order]
    stage = ["stride 1", "stride 1", "stride 2", "drop 0.5"]
    assert found == ["drop 0.2", *stage, *stage, "stride 1", "stride 1", "stride 1"]


def test_initialisation_is_he_fan_in() -> None:
    torch.manual_seed(0)
    for module in build_model("all-cnn-c", 10).modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias.eq(0).all()
            expected = math.sqrt(2 / module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_count_follows_from_the_table() -> None:
    count = sum((c_in * side**2 + 1) * c_out for c_in, c_out, side, *_ in MODEL_C.values())
    assert count_parameters("all-cnn-c", 10) == count
