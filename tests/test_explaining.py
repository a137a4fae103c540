"""Grad-CAM against what follows from a network's own parts, and over the families of the zoo."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d

from candid.errors import InputError
from candid.explaining import explain
from candid.models import build_model

NUM_CLASSES = 4


def network(name: str) -> nn.Module:
    """A network whose running statistics are those of some pictures."""
    torch.manual_seed(0)
    model = build_model(name, NUM_CLASSES, dropout=0.0).double()
    model.train()(pictures(name, 8, seed=1))
    return model.eval()


def pictures(name: str, number: int, seed: int = 0) -> Tensor:
    side = {"lenet-relu": 28, "convnet": 28, "mlp-bn": 28, "vgg11-notes-small": 64}.get(name, 32)
    random = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, side, side, dtype=torch.float64, generator=random) * 2 - 1


def heat_of(maps: Tensor, weights: Tensor, side: int) -> Tensor:
    """Equation 2 written out for one picture: maps [K, h, w], weights [K]."""
    heat = torch.einsum("k,khw->hw", weights, maps).clamp(min=0)
    heat = interpolate(heat[None, None], (side, side), mode="bilinear")[0, 0]
    return heat / heat.max().clamp(min=1e-300)


def test_a_head_on_the_mean_of_the_maps_weights_them_by_its_rows():
    """Without any gradient: where the logit is linear in the means, its gradient is the head's row."""
    for name, last in (("resnet20-cifar", "stages"), ("googlenet-cifar", "inception5b"), ("mobilenetv2-cifar", "last")):
        model, inputs = network(name), pictures(name, 3)
        found: list[Tensor] = []
        hook = model.get_submodule(last).register_forward_hook(lambda *call, found=found: found.append(call[2]))
        with torch.inference_mode():
            classes = model(inputs).argmin(dim=1)  # any class can be asked about
        hook.remove()
        heat = explain(model, inputs, classes)
        for row, one in enumerate(classes.tolist()):
            expected = heat_of(found[0][row], model.head.weight[one].detach(), inputs.shape[-1])
            assert (heat[row] - expected).abs().max() < 1e-10, name


def test_behind_the_last_activation_only_what_it_lets_through_counts():
    """DenseNet: norm, ReLU, mean, head."""
    model, inputs = network("densenet-bc-40-12"), pictures("densenet-bc-40-12", 2)
    found: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda *call: found.append(call[2]))
    with torch.inference_mode():
        model(inputs)
    hook.remove()
    heat = explain(model, inputs, torch.tensor([1, 2]))
    for row, one in enumerate((1, 2)):
        weights = model.head.weight[one].detach() * (found[0][row] > 0).double().mean(dim=(1, 2))
        assert (heat[row] - heat_of(found[0][row], weights, 32)).abs().max() < 1e-10


def through_vgg(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def classify(maps: Tensor) -> Tensor:
        return model.head(model.classifier(model.average(model.features[-1](maps)).flatten(1)))

    return model.features[:-1], classify


def through_lenet(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def features(x: Tensor) -> Tensor:
        return model.conv2(model.pool(model.conv1(x).relu())).relu()

    def classify(maps: Tensor) -> Tensor:
        return model.head(model.linear2(model.linear1(model.pool(maps).flatten(1)).relu()).relu())

    return features, classify


@pytest.mark.parametrize(("name", "through"), [("vgg11-notes-small", through_vgg), ("lenet-relu", through_lenet)])
def test_the_maps_before_the_last_pooling_are_weighted(name: str, through):
    """By differences instead of derivatives: the logit changes linearly with each map, as far as it moves."""
    model, inputs = network(name), pictures(name, 1)
    features, classify = through(model)
    with torch.no_grad():
        maps = features(inputs)
        step = 1e-6
        rises: list[Tensor] = []
        for number in range(maps.shape[1]):
            moved = maps.clone()
            moved[:, number] += step
            rises.append((classify(moved) - classify(maps))[0] / step)
    heat = explain(model, inputs.expand(NUM_CLASSES, -1, -1, -1), torch.arange(NUM_CLASSES))
    assert heat.amax(dim=(1, 2)).sum() > 0  # of some classes at least, something speaks for them
    for one in range(NUM_CLASSES):
        weights = torch.stack([rise[one] for rise in rises]) / maps[0, 0].numel()
        assert (heat[one] - heat_of(maps[0], weights, inputs.shape[-1])).abs().max() < 1e-4


FAMILIES = {
    "airbench94": 3,
    "all-cnn-c": 6,
    "convnet": 11,
    "densenet-cifar": 4,
    "dsn": 8,
    "fractalnet-small": 2,
    "ghostnet-1.0-cifar": 4,
    "googlenet-cifar": 8,
    "highway19": 8,
    "lenet-relu": 8,
    "mobilenetv2-cifar": 4,
    "nin": 8,
    "preact-resnet18-cifar": 4,
    "resnet18-cifar": 4,
    "shufflenetv2-0.5-cifar": 4,
    "vgg16-bn-cifar": 2,
}
"""A network of each family to the side of the maps that are weighted: alexnet is as vgg."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_explained_by_its_last_maps(name: str, monkeypatch: pytest.MonkeyPatch):
    sides: list[int] = []
    monkeypatch.setattr(
        "candid.explaining.interpolate",
        lambda heat, *args, **kw: (sides.append(heat.shape[2]), interpolate(heat, *args, **kw))[1],
    )
    torch.manual_seed(0)
    model, inputs = build_model(name, NUM_CLASSES), pictures(name, 2).float()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heat = explain(model, inputs, torch.tensor([0, 3]))
    assert sides == [FAMILIES[name]]
    assert heat.shape == (2, *inputs.shape[2:])
    assert not heat.requires_grad
    assert 0 <= heat.min() <= heat.max() <= 1
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_place_that_alone_matters_is_the_strongest():
    """A network that looks at brightness only: what is bright speaks for its first class, and nothing for the other."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    inputs = torch.zeros(2, 1, 8, 8)
    inputs[:, 0, 2, 5] = 3
    with torch.inference_mode():  # where whoever predicts may be
        heat = explain(model, inputs, torch.tensor([0, 1]))
    assert heat[0].flatten().argmax() == 2 * 8 + 5
    assert heat[0].max() == 1
    assert heat[0].sum() == 1
    assert heat[1].sum() == 0


class Branches(nn.Module):
    """Two convolutions side by side, pooled and added: called as layers, or out of sight of whoever watches layers."""

    def __init__(self, *, in_sight: bool) -> None:
        super().__init__()
        self.in_sight = in_sight
        self.stem, self.left, self.right = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Conv2d(5, 4, 3)
        self.pool, self.head = nn.MaxPool2d(5), nn.Linear(4 * 4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.in_sight:
            joined = self.pool(self.left(x)) + self.pool(self.right(x))
        else:
            left, right = (max_pool2d(conv2d(x, one.weight, one.bias), 5) for one in (self.left, self.right))
            joined = left + right
        return self.head(joined.flatten(1))


def test_one_of_several_branches_is_not_all_that_the_network_knows():
    torch.manual_seed(0)
    seen, unseen = Branches(in_sight=True), Branches(in_sight=False)
    unseen.load_state_dict(seen.state_dict())
    inputs, classes = torch.rand(4, 3, 14, 14), torch.arange(4)
    heat = explain(unseen, inputs, classes)  # which has no maps but the stem's
    assert heat.amax() == 1
    assert torch.equal(explain(seen, inputs, classes), heat)


def test_a_network_without_maps_is_refused():
    with pytest.raises(InputError) as caught:
        explain(build_model("mlp-bn", NUM_CLASSES), pictures("mlp-bn", 2).float(), torch.tensor([0, 1]))
    assert str(caught.value) == (
        "The network has no maps of features with more than one pixel; expected some, because Grad-CAM weights "
        "them. Use a convolutional network, or larger pictures."
    )
