"""Is a network of the zoo the same function as an independent one? The definition of correct here."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

State = dict[str, Tensor]
Reference = Callable[[State, Tensor, bool], object]
"""(state under the names of our network, images, training) to logits (or a tuple: those of auxiliary classifiers
behind); updates running statistics in place."""

# Both sides add the same float64 numbers in another order, which costs about 1e-16 a layer; batch
# statistics of few values amplify that in the deepest networks. A wrong network is off by about 1.
TOLERANCE = 1e-10


def maps(number: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random maps in channels-last memory."""
    torch.manual_seed(0)
    return torch.randn(number, channels, height, width, dtype=dtype).to(memory_format=torch.channels_last)


def randomise(model: nn.Module) -> None:
    """Moves all that starts at 0 or 1, so that no two values can stand in for one another."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5, generator=generator)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.2, generator=generator)


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    scale = max(1.0, expected.abs().max().item())
    difference = (found - expected).abs().max().item() / scale
    assert difference < TOLERANCE, f"{what} differs by {difference:.1e} of its scale"


def all_logits(output: object) -> Tensor:
    """The logits [N, classes], those of auxiliary classifiers behind them: [N, (1 + auxiliary) * classes]."""
    if isinstance(output, Tensor):
        return output
    main, *auxiliary = output
    return torch.cat((main, *(auxiliary[0] if isinstance(auxiliary[0], tuple) else auxiliary)), dim=1)


def assert_same_network(model: nn.Module, reference: Reference, images: Tensor) -> None:
    """Equal logits, gradients of all parameters and running statistics, in training and evaluation."""
    model, images = model.double(), images.double()
    randomise(model)
    for training in (True, False):  # batch statistics, then running ones
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        names = [name for name, _ in model.named_parameters()]
        for name in names:
            state[name].requires_grad_()
        expected = all_logits(reference(state, images, training))
        found = all_logits(model.train(training)(images))
        assert_close(found, expected, f"logits (training={training})")
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
        # Zeros for parameters that are not used: those of auxiliary classifiers in evaluation.
        gradients = torch.autograd.grad(found, list(model.parameters()), direction, materialize_grads=True)
        wanted = torch.autograd.grad(expected, [state[name] for name in names], direction, materialize_grads=True)
        for name, gradient, want in zip(names, gradients, wanted, strict=True):
            assert_close(gradient, want, f"gradient of {name} (training={training})")
        for name, buffer in model.named_buffers():
            if "num_batches" not in name:
                assert_close(buffer, state[name], f"{name} (training={training})")


def from_module(theirs: nn.Module, their_name: Callable[[str], str]) -> Reference:
    """Runs `theirs` on our state, whose names `their_name` translates; its own values are never read."""

    def reference(state: State, images: Tensor, training: bool) -> Tensor:
        translated = {their_name(name): value for name, value in state.items()}
        assert set(translated) == set(theirs.state_dict())
        return functional_call(theirs.double().train(training), translated, images, strict=True)

    return reference


def random_images(num_images: int, channels: int, side: int) -> Tensor:
    return torch.rand(num_images, channels, side, side, generator=torch.Generator().manual_seed(1))


def assert_drawn_as_he_fan_out(model: nn.Module) -> None:
    """He et al. 2015 in convolutions of enough weights to tell, and normalisation that begins as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
