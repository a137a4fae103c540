"""Layers that are computed together, or on a way of their own, are torch's layers."""

import copy

import pytest
import torch
from parity import maps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid.models import build_model, fused_layers
from candid.models.fused_layers import DepthwiseConv2d, HalvingPool, Layers, normalise, shift

BOUND = 1e-11  # float64 leaves only rounding
GROWN = 1e-8  # rounding behind a step through dozens of normalisations of small maps
NETWORKS = ["resnet20-cifar", "wrn-16-4", "mobilenetv2-0.35", "shufflenetv2-0.5-cifar", "ghostnet-0.5", "airbench94"]


@pytest.fixture(autouse=True)
def compiled():
    assert fused_layers._load() is None


def fused(out: Tensor) -> bool:
    return any(name in str(out.grad_fn) for name in ("Normalise", "Depthwise", "Pool", "Shift"))


def without_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "_load", lambda: "there is no compiler")


def learn(network: nn.Module, num_steps: int = 2) -> dict[str, Tensor]:
    """Logits, gradients and buffers of some steps of gradient descent, then the logits in evaluation."""
    found: dict[str, Tensor] = {}
    dtype = next(network.parameters()).dtype
    for step in range(num_steps):
        torch.manual_seed(step)  # for dropout
        network.zero_grad()
        logits = network(maps(6, 3, 16, 16, dtype))
        cross_entropy(logits, torch.arange(6)).backward()
        found[f"logits {step}"] = logits.detach()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            found[f"gradient {step} {name}"] = parameter.grad.clone()
        found |= {f"{name} {step}": value.double().clone() for name, value in network.named_buffers()}
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.data -= 1e-3 * parameter.grad / parameter.grad.norm().clamp(min=1)
    with torch.no_grad():
        found["evaluated 1"] = copy.deepcopy(network).eval()(maps(6, 3, 16, 16, dtype))
    return found


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, 10, image_size=16).double().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_learn_what_they_learn_by_torchs_layers(name: str, monkeypatch: pytest.MonkeyPatch):
    ours = learn(make(name))
    without_pieces(monkeypatch)
    theirs = learn(make(name))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        bound = BOUND if " 0" in key else GROWN
        assert (ours[key] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), key


@pytest.mark.parametrize("name", ["mobilenetv2-0.35", "resnet20-cifar"])
def test_the_same_bits_each_time(name: str):
    torch.set_num_threads(2)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            runs = [learn(make(name).float()) for _ in range(2)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(), nn.GELU()])
@pytest.mark.parametrize(("channels", "side"), [(3, 5), (12, 8), (300, 3)])
def test_normalisation_with_what_follows(dtype: torch.dtype, activation: nn.Module | None, channels: int, side: int):
    x, gradient = maps(4, channels, side, side, dtype) * 3 + 1, maps(4, channels, side, side, dtype)
    norms = [nn.BatchNorm2d(channels, dtype=torch.float64 if dtype == torch.float64 else None) for _ in range(2)]
    nn.init.uniform_(norms[0].weight)
    nn.init.uniform_(norms[0].bias)
    norms[1] = copy.deepcopy(norms[0]).double()
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out = normalise(ours, norms[0], activation)
    expected = norms[1](theirs)
    expected = expected if activation is None else activation(expected)
    assert fused(out)
    assert (out.dtype, out.stride()) == (dtype, x.stride())
    out.backward(gradient)
    expected.backward(gradient.double())
    digits = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    pairs = [(out, expected), (ours.grad, theirs.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(norms[0].parameters(), norms[1].parameters(), strict=True)]
    pairs += list(zip(norms[0].buffers(), norms[1].buffers(), strict=True))
    for found, known in pairs:
        assert found is not None
        assert known is not None
        assert (found.double() - known).abs().max() <= digits * known.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
@pytest.mark.parametrize("is_input", [False, True])
def test_a_bias_with_what_follows(dtype: torch.dtype, activation: nn.Module, is_input: bool):
    x, gradient = maps(4, 24, 5, 7, dtype) * 3, maps(4, 24, 5, 7, dtype)
    bias = torch.linspace(-2, 2, 24, dtype=torch.float64).requires_grad_()
    own = (bias if dtype == torch.float64 else bias.float()).detach().clone().requires_grad_()
    ours, theirs = x.clone().requires_grad_(not is_input), x.double().requires_grad_()
    out, expected = shift(ours, own, activation), activation(theirs + bias.view(-1, 1, 1))
    assert fused(out)
    assert (out.dtype, out.stride()) == (dtype, x.stride())
    out.backward(gradient)
    expected.backward(gradient.double())
    digits = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    pairs = [(out, expected), (own.grad, bias.grad)] + ([] if is_input else [(ours.grad, theirs.grad)])
    for found, known in pairs:
        assert found is not None
        assert known is not None
        assert (found.double() - known).abs().max() <= digits * known.abs().max().clamp(min=1)


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.5, 3.0, 5.0, 9.0, 14.0, 100.0, torch.inf])
def test_gelu_far_out(x: float):
    both = torch.tensor([x, -x]).view(2, 1, 1, 1).expand(2, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    ours, theirs = both.clone().requires_grad_(), both.clone().requires_grad_()
    out, expected = shift(ours, torch.zeros(8), nn.GELU()), nn.functional.gelu(theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_other_gelu_is_called():
    norm, other = nn.BatchNorm2d(8), nn.GELU(approximate="tanh")
    x = maps(2, 8, 4, 4, torch.float32)
    assert torch.equal(normalise(x, norm, other), other(nn.BatchNorm2d(8)(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 4, 4), (20, 9, 6), (70, 2, 3), (300, 5, 7)])
def test_maxima_are_torchs_to_the_last_bit(dtype: torch.dtype, channels: int, height: int, width: int):
    x = (maps(3, channels, height, width, dtype) * 2).round()  # many are equal
    x[1, 0, 1, 1] = torch.nan
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = HalvingPool()(ours), nn.functional.max_pool2d(theirs, 2)
    gradient = torch.randn_like(expected)
    assert fused(out)
    out.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_what_is_too_small_to_be_halved_is_refused_by_torch():
    with pytest.raises(RuntimeError, match=r"Output size is too small"):
        HalvingPool()(maps(2, 8, 1, 4, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 4, 4), (20, 9, 6), (70, 1, 3)])
def test_depthwise_convolution(
    dtype: torch.dtype, kernel_size: int, stride: int, channels: int, height: int, width: int
):
    x = maps(3, channels, height, width, dtype)
    conv = DepthwiseConv2d(channels, kernel_size, stride)
    plain = nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False).double()
    plain.load_state_dict(conv.state_dict())
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = (conv.double() if dtype == torch.float64 else conv)(ours)
    expected = plain(theirs)
    gradient = torch.randn_like(expected).to(dtype)
    assert fused(out)
    assert out.dtype == dtype
    out.backward(gradient)
    expected.backward(gradient.double())
    digits = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    pairs = ((out, expected), (ours.grad, theirs.grad), (conv.weight.grad, plain.weight.grad))
    for found, known in pairs:
        assert found is not None
        assert known is not None
        assert (found.double() - known).abs().max() <= digits * known.abs().max().clamp(min=1)


def test_a_bias_that_was_folded_in_counts_in_gradients_too():
    conv, x = DepthwiseConv2d(8, 3, 1), maps(2, 8, 4, 4, torch.float32)
    without = conv(x)
    conv.bias = nn.Parameter(torch.arange(8.0))
    assert torch.allclose(conv(x) - without, conv.bias.view(-1, 1, 1).expand(8, 4, 4), atol=1e-5)


def test_who_waits_for_a_layer_sees_it_called():
    layers = Layers(DepthwiseConv2d(8, 3, 1), nn.BatchNorm2d(8), nn.ReLU())
    called: list[str] = []
    layers[1].register_forward_hook(lambda *_: called.append("norm"))
    assert not fused(layers(maps(2, 8, 4, 4, torch.float32)))
    assert called == ["norm"]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8).eval(),
        nn.BatchNorm2d(8, affine=False),
        nn.SyncBatchNorm(8).eval(),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8),
    ],
)
def test_other_normalisations_are_called(norm: nn.Module):
    x = maps(2, 8, 4, 4, torch.float32)
    out = normalise(x, norm, nn.ReLU())
    assert not fused(out)
    assert torch.equal(out, norm(x).relu())


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}])
def test_options_of_a_normalisation(options: dict[str, bool | float | None]):
    ours, x = nn.BatchNorm2d(8, **options).double(), maps(2, 8, 4, 4)  # pyright: ignore[reportArgumentType]
    theirs = copy.deepcopy(ours)
    for _ in range(3):
        out = normalise(x, ours, None)
        assert fused(out)
        assert (out - theirs(x)).abs().max() < BOUND
    for found, known in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert (found - known).abs().max() < BOUND


def test_maps_in_contiguous_memory_go_through_torchs_layers():
    layers = Layers(DepthwiseConv2d(8, 3, 1), nn.BatchNorm2d(8), nn.ReLU())
    assert not fused(layers(torch.randn(2, 8, 4, 4)))


def test_nobody_needs_the_pieces_without_gradients():
    with torch.no_grad():
        x = maps(2, 8, 4, 4, torch.float32)
        norm = nn.BatchNorm2d(8)
        assert torch.equal(normalise(x, norm, None), nn.BatchNorm2d(8)(x))


def test_a_single_pixel_has_no_variance():
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
        normalise(maps(1, 8, 1, 1, torch.float32), nn.BatchNorm2d(8), None)


def test_what_is_no_number_stays_none():
    x = maps(2, 8, 4, 4, torch.float32)
    x[0, 3, 1, 1] = torch.nan
    out = normalise(x, nn.BatchNorm2d(8), nn.ReLU6())
    assert out[:, 3].isnan().all()
    assert not out[:, :3].isnan().any()


def test_gradients_of_gradients_are_refused():
    layers, x = Layers(nn.BatchNorm2d(8), nn.ReLU()), maps(2, 8, 4, 4, torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(layers(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        gradient.sum().backward()


def test_pieces_are_told_by_their_shapes_alone():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    def flops() -> int:
        layers = Layers(DepthwiseConv2d(8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        x = maps(2, 8, 4, 4, torch.float32).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            out = layers(x)
            assert fused(out)
            out.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        return counter.get_total_flops()

    with FakeTensorMode():
        counted = flops()
    assert counted == flops() == 3 * 2 * (2 * 2 * 2 * 8) * 9  # forward, and two ways back


def test_an_exported_network_is_made_of_torchs_layers():
    network = make("mobilenetv2-0.35").float().train()
    exported = torch.export.export(network, (maps(2, 3, 16, 16, torch.float32),))
    assert not [node for node in exported.graph.nodes if "candid" in str(node.target)]
