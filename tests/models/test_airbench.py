import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters
from candid.models.airbench import conv_identity

torch.set_num_threads(1)


def airbench94(state: State, x: Tensor, training: bool) -> Tensor:
    """Jordan 2024, section 3.1, with a maximum over whatever is left and a head with a bias."""

    def convolve(x: Tensor, place: str) -> Tensor:
        return F.conv2d(x, state[f"{place}.weight"], padding=1)

    def normalise(x: Tensor, place: str) -> Tensor:
        weight, bias, mean, var = (
            state[f"{place}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        )
        return F.gelu(F.batch_norm(x, mean, var, weight, bias, training))

    x = F.gelu(F.conv2d(x, state["stem.filters"], state["stem.bias"]))
    for block in range(3):
        x = normalise(F.max_pool2d(convolve(x, f"blocks.{block}.conv1"), 2), f"blocks.{block}.norm1")
        x = normalise(convolve(x, f"blocks.{block}.conv2"), f"blocks.{block}.norm2")
    return F.linear(x.flatten(2).amax(2), state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("side", [9, 32])
def test_is_the_network_of_the_paper(side: int) -> None:
    assert_same_network(build_model("airbench94", 7), airbench94, random_images(3, 3, side))


def test_count_is_the_papers_and_what_it_lacks() -> None:
    # 1.97 M in the paper: without the gains of the normalisations (64, 256, 256 twice) and the bias of the head.
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases, gains, head = 24 + 2 * (64 + 256 + 256), 2 * (64 + 256 + 256), 256 * 10
    assert count_parameters("airbench94", 10) == convolutions + biases + gains + head + 10
    assert round((convolutions + biases + head + 24 * 12) / 1e6, 2) == 1.97


def test_convolutions_begin_as_the_identity_as_far_as_their_input_goes() -> None:
    torch.manual_seed(0)
    x = random_images(2, 4, 6).float()
    with torch.no_grad():
        wider, narrower = conv_identity(4, 6)(x), conv_identity(4, 2)(x)
    torch.testing.assert_close(wider[:, :4], x)
    assert wider[:, 4:].std() > 0.1
    torch.testing.assert_close(narrower, x[:, :2])
