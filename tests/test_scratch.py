"""The operations written by hand against torch's: values and gradients in float64, over sizes that hypothesis draws."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from candid import scratch
from candid.errors import InputError

FEW = settings(max_examples=40, deadline=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_equal(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Same values, and same gradients of a weighted sum of them, for each input."""
    results: list[tuple[Tensor, ...]] = []
    for function in (ours, theirs):
        leaves = [values.clone().requires_grad_() for values in inputs]
        output = function(*leaves)
        weights = normal(*output.shape, seed=1)
        results.append((output, *torch.autograd.grad((output * weights).sum(), leaves)))
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """Height, width, kernel height and width, padding and stride of a window that fits."""
    h, w = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding, stride = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    height, width = (draw(st.integers(max(1, side - 2 * padding), 9)) for side in (h, w))
    return height, width, h, w, padding, stride


def test_the_notes_examples():
    image = torch.tensor([[5.0, 6, 2], [3, 4, 5], [6, 7, 8]])
    assert scratch.correlate(image, torch.tensor([[0.0, 4], [8, 3]])).tolist() == [[60, 55], [85, 100]]
    first = torch.arange(9.0).view(3, 3)
    images, kernels = torch.stack([first, first + 1])[None], torch.tensor([[[[0.0, 1], [2, 3]], [[1, 2], [3, 4]]]])
    assert scratch.conv2d(images, kernels)[0, 0].tolist() == [[56, 72], [104, 120]]


def test_the_notes_edge_detector_is_learned():
    """80 steps of rate 0.01 from a kernel and a bias drawn at random end at (1, -1) and 0."""
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    edges = scratch.correlate(image, torch.tensor([[1.0, -1]]))
    generator = torch.Generator().manual_seed(0)
    kernel, bias = nn.Parameter(torch.randn(1, 2, generator=generator)), nn.Parameter(torch.zeros(1))
    optimizer = scratch.SGD([kernel, bias], rate=0.01)
    for _ in range(80):
        ((scratch.correlate(image, kernel) + bias - edges) ** 2).sum().backward()
        optimizer.step()
    assert kernel.tolist()[0] == pytest.approx([1, -1], abs=1e-3)
    assert float(bias) == pytest.approx(0, abs=1e-3)


@FEW
@given(sizes(), st.integers(1, 3), st.integers(1, 3))
def test_convolution(size: tuple[int, ...], channels: int, outputs: int):
    height, width, h, w, padding, stride = size
    assert_equal(
        lambda *inputs: scratch.conv2d(*inputs, padding=padding, stride=stride),
        lambda *inputs: functional.conv2d(*inputs, padding=padding, stride=stride),
        normal(2, channels, height, width), normal(outputs, channels, h, w, seed=2), normal(outputs, seed=3),
    )  # fmt: skip


@FEW
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_one_by_one(channels: int, outputs: int, height: int, width: int):
    def theirs(images: Tensor, weights: Tensor) -> Tensor:
        return functional.conv2d(images, weights[:, :, None, None])

    assert_equal(scratch.conv1x1, theirs, normal(2, channels, height, width), normal(outputs, channels, seed=2))


@FEW
@given(st.integers(1, 3), st.integers(0, 1), st.integers(1, 3), st.integers(3, 9))
def test_pooling(kernel: int, padding: int, stride: int, side: int):
    padding = min(padding, kernel // 2)  # torch refuses more
    options = {"padding": padding, "stride": stride}
    images = normal(2, 3, side, side + 1)
    for ours, theirs in (
        (scratch.max_pool2d, functional.max_pool2d),
        (scratch.avg_pool2d, functional.avg_pool2d),
    ):
        assert_equal(lambda x, f=ours: f(x, kernel, **options), lambda x, f=theirs: f(x, kernel, **options), images)


def test_pooling_windows_lie_side_by_side_where_no_stride_is_given():
    images = normal(1, 1, 6, 6)
    assert torch.equal(scratch.max_pool2d(images, 2), functional.max_pool2d(images, 2))


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 6)])
@pytest.mark.parametrize("is_training", [True, False])
def test_batch_normalisation(shape: tuple[int, ...], is_training: bool):
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()
    ours = scratch.BatchNorm(3).double()
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            module.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        for seed in range(3):  # running averages move away from 0 and 1
            module(2 + 3 * normal(*shape, seed=seed))
        module.train(is_training)
    assert_equal(ours, theirs, normal(*shape, seed=9))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.grad = other.grad = None
    for module in (ours, theirs):
        (module(normal(*shape, seed=9)) * normal(*shape, seed=1)).sum().backward()
    for name in ("weight", "bias"):
        one, other = getattr(ours, name).grad, getattr(theirs, name).grad
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_running_averages_are_saved_and_are_those_of_torch():
    ours, theirs = scratch.BatchNorm(3).double(), nn.BatchNorm2d(3).double()
    for seed in range(4):
        for module in (ours, theirs):
            module(2 + 3 * normal(4, 3, 5, 5, seed=seed))
    saved, expected = ours.state_dict(), theirs.state_dict()
    assert set(saved) == set(expected) - {"num_batches_tracked"}
    assert all(torch.allclose(values, expected[name], rtol=1e-12) for name, values in saved.items())


def test_dropout_keeps_the_expectation():
    x = normal(200, 500)
    dropped = scratch.dropout(x, 0.3, torch.Generator().manual_seed(0))
    is_zero = dropped == 0
    assert torch.equal(dropped[~is_zero], (x / (1 - 0.3))[~is_zero])
    share = float(is_zero.double().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.numel())


def test_dropout_passes_gradients_where_values_pass():
    x = normal(50, 50).requires_grad_()
    dropped = scratch.dropout(x, 0.5, torch.Generator().manual_seed(0))
    [gradient] = torch.autograd.grad(dropped.sum(), [x])
    assert torch.equal(gradient, torch.where(dropped == 0, 0.0, 2.0).double())


@FEW
@given(st.integers(1, 6), st.integers(2, 7), st.sampled_from([1.0, 30.0, 2000.0]))
def test_cross_entropy(number: int, classes: int, scale: float):
    labels = torch.arange(number) % classes
    assert_equal(
        lambda logits: scratch.cross_entropy(logits, labels),
        lambda logits: functional.cross_entropy(logits, labels),
        scale * normal(number, classes),
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent(momentum: float):
    ours, theirs = nn.Parameter(normal(4)), nn.Parameter(normal(4))
    our_optimizer = scratch.SGD([ours, nn.Parameter(normal(1))], 0.1, momentum)  # one never gets a gradient
    their_optimizer = torch.optim.SGD([theirs], 0.1, momentum)
    for _ in range(5):
        for parameter, optimizer in ((ours, our_optimizer), (theirs, their_optimizer)):
            (parameter**4).sum().backward()
            optimizer.step()
        their_optimizer.zero_grad()
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("side", "kernel", "padding", "stride", "places"),
    [(28, 5, 0, 1, 24), (28, 5, 2, 1, 28), (224, 11, 0, 4, 54), (224, 7, 3, 2, 112), (3, 3, 0, 2, 1)],
)
def test_places_of_a_window(side: int, kernel: int, padding: int, stride: int, places: int):
    assert scratch.output_side(side, kernel, padding, stride) == places


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(InputError) as caught:
        scratch.conv2d(normal(1, 1, 3, 9), normal(1, 1, 6, 2), padding=1)
    assert str(caught.value) == (
        "A window of 6 px does not fit into 3 px with a padding of 1; expected at most 5 px. Use a smaller window, or "
        "more padding."
    )
