"""Folding normalisation into convolutions changes nothing but the time."""

import gc
import weakref

import pytest
import torch
from test_registry import LARGE, MARKED, built, random_images
from torch import Tensor, nn

from candid.models import build_model, find_variant, list_models
from candid.models.fusion import fuse_norms
from candid.training.recomputation import recompute_segments

# Families in which a normalisation reads sums, poolings, what was dropped out, or nothing at all.
KEEP_SOME = {"airbench", "densenet", "fractalnet", "mlp", "preact_resnet"}
NORMALISED = [name for name in list_models() if name not in LARGE and find_variant(name).family not in KEEP_SOME]


def evaluated(name: str) -> nn.Module:
    """The network in float64 and evaluation mode, with another gain, bias and statistics for every channel."""
    model = built(name).double()
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.8, 1.2),
            ):
                nn.init.uniform_(tensor, low, high)
    return model.eval()


def equal(model: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with torch.inference_mode():
        expected, found = model(images), other(images)
    return bool((found - expected).abs().max() <= 1e-10 * expected.abs().max())


def called_norms(model: nn.Module) -> list[str]:
    """The normalisations that do something when images go through."""
    return [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "forward" not in vars(m)]


@pytest.mark.parametrize("name", MARKED)
def test_the_fused_network_computes_the_same_and_the_other_stays(name: str):
    model = evaluated(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert equal(model, fuse_norms(model), random_images(name).double())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert called_norms(model) == [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", NORMALISED)
def test_every_norm_behind_a_convolution_is_folded(name: str):
    left = called_norms(fuse_norms(built(name).eval()))
    assert [norm for norm in left if not norm.startswith("auxiliary.")] == []  # classifiers that evaluation leaves out


@pytest.mark.parametrize(("name", "folded"), [("densenet121", ["stem.1"]), ("densenet-cifar", []), ("mlp-bn", [])])
def test_of_what_normalises_first_only_the_stem_is_folded(name: str, folded: list[str]):
    model = built(name).eval()
    fused = fuse_norms(model)
    assert [norm for norm in called_norms(model) if norm not in called_norms(fused)] == folded
    assert (fused is model) == (not folded)


def test_what_is_not_changed_is_shared():
    model = built("resnet20-cifar").eval()
    fused = fuse_norms(model)
    assert fused.head is model.head
    assert fused.stem[0].weight is not model.stem[0].weight
    assert fused.stem[1].running_mean is model.stem[1].running_mean


def test_a_folded_network_is_gone_with_its_last_name():
    model = build_model("lenet-bn", num_classes=10, in_channels=1).eval()
    gone = weakref.ref(model)
    gc.disable()  # memory is planned for networks that do not wait for it
    try:
        fuse_norms(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_network_that_recomputes_is_folded_too():
    name = "vgg16-bn-cifar"  # its segments hold the layers once more
    model = evaluated(name)
    recompute_segments(model)
    fused = fuse_norms(model)
    assert called_norms(fused) == []
    assert equal(model, fused, random_images(name).double())


class Shared(nn.Module):
    """A convolution that somebody else reads too, one that is called twice, and a decision that depends on values."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        self.read, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.decides = decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() > 0:
            return x
        maps = self.read(x)
        return self.norms[0](maps) + maps + self.norms[1](self.twice(x)) + self.norms[2](self.twice(maps))


@pytest.mark.parametrize("decides", [False, True])
def test_what_cannot_be_folded_is_left_as_it_is(decides: bool):
    model = Shared(decides=decides).eval()
    assert fuse_norms(model) is model


def test_norms_of_the_batch_are_left_as_they_are():
    without_statistics = nn.BatchNorm2d(3, track_running_stats=False)
    for norm in (without_statistics, nn.BatchNorm2d(3).train()):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
        assert fuse_norms(model) is model
