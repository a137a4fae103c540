import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from candid.models import ALIASES, REGISTRY, build_model, count_parameters, find_variant, list_models
from candid.models.summary import Summary, describe_kind, summarize

torch.set_num_threads(1)

DEEP = 130  # layers; benchmarks.tables sees the others too
FAMILIES = {variant.family: name for name, variant in reversed(REGISTRY.items())}  # the first of each


def rows(summary: Summary) -> list[tuple[object, ...]]:
    return [(r.name, r.kind, r.output, r.parameters, r.multiply_adds) for r in summary.layers]


def test_lenet_layer_by_layer() -> None:
    assert rows(summarize("lenet")) == [
        ("conv1", "conv 5x5", (6, 24, 24), 6 * 26, 6 * 25 * 24**2),
        ("activation", "sigmoid", (6, 24, 24), 0, 0),
        ("pool", "max pool 2x2/2", (6, 12, 12), 0, 0),
        ("conv2", "conv 5x5", (16, 8, 8), 16 * 151, 16 * 150 * 8**2),
        ("activation", "sigmoid", (16, 8, 8), 0, 0),
        ("pool", "max pool 2x2/2", (16, 4, 4), 0, 0),
        ("linear1", "linear", (120,), 120 * 257, 120 * 256),
        ("activation", "sigmoid", (120,), 0, 0),
        ("linear2", "linear", (84,), 84 * 121, 84 * 120),
        ("activation", "sigmoid", (84,), 0, 0),
        ("head", "linear", (10,), 10 * 85, 10 * 84),
    ]


def test_operations_between_layers_have_rows_of_their_own() -> None:
    assert [r[:3] for r in rows(summarize("densenet-40-12")) if r[0] == "blocks.2"] == [
        ("blocks.2", "concatenation", (304 + 12 * k, 8, 8)) for k in range(1, 13)
    ]
    assert ("stages.1.0", "sum", (32, 16, 16), 0, 0) in rows(summarize("resnet20-cifar"))
    assert rows(summarize("resnet20-cifar"))[-2] == ("", "average", (64,), 0, 0)


def test_groups_divide_the_multiply_adds() -> None:
    by_name = {layer.name: layer for layer in summarize("resnext50-32x4d").layers}
    grouped = by_name["stages.0.0.conv2"]
    assert (grouped.kind, grouped.output) == ("conv 3x3 g32", (128, 56, 56))
    assert grouped.multiply_adds == 56 * 56 * 128 * 9 * 128 // 32
    assert grouped.parameters == 128 * 9 * 128 // 32


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(3, 8, 3), "conv 3x3"),
        (nn.Conv2d(3, 8, (3, 5), stride=(1, 2)), "conv 3x5/1x2"),
        (nn.Conv2d(8, 8, 11, stride=4), "conv 11x11/4"),
        (nn.Conv2d(8, 8, 3, stride=2, groups=4), "conv 3x3/2 g4"),
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), "depthwise 3x3/2"),
        (nn.MaxPool2d(3, 2), "max pool 3x3/2"),
        (nn.AvgPool2d(2), "average pool 2x2/2"),
        (nn.AdaptiveAvgPool2d(1), "adaptive average pool"),
        (nn.BatchNorm2d(3), "batch norm"),
        (nn.BatchNorm1d(3), "batch norm"),
        (nn.LocalResponseNorm(5), "local response norm"),
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Linear(2, 2), "linear"),
        (nn.Dropout(0.5), "dropout"),
    ],
)
def test_kinds_are_short_words(layer: nn.Module, kind: str) -> None:
    assert describe_kind(layer) == kind


MARKED = [
    pytest.param(name, marks=[] if FAMILIES[variant.family] == name else pytest.mark.long)
    for name, variant in REGISTRY.items()
]


@pytest.mark.parametrize("name", MARKED)
def test_multiply_adds_are_half_of_what_torch_counts(name: str) -> None:
    variant = find_variant(name)
    with torch.device("meta"):
        model = build_model(name, variant.num_classes, variant.in_channels).eval()
        images = torch.empty(1, variant.in_channels, variant.image_size, variant.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    assert 2 * summarize(name).multiply_adds == counter.get_total_flops()


# Their `_ops` are multiply-adds, in milliards with three decimals. Their GoogLeNet is our googlenet-bn.
NAMES = {name: name for name in list_models()} | ALIASES | {"googlenet": "googlenet-bn"}
SHARED = sorted(set(NAMES) & set(torchvision.models.list_models(torchvision.models)))


@pytest.mark.parametrize("name", SHARED)
def test_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert round(summarize(NAMES[name]).multiply_adds / 1e9, 3) == published


def test_torchvision_is_asked_about_many() -> None:
    assert {"resnet50", "densenet121", "mobilenet_v2", "vgg16", "alexnet", "shufflenet_v2_x1_0"} <= set(SHARED)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_rows_hold_all_parameters_but_those_of_auxiliary_classifiers(name: str) -> None:
    variant, summary = find_variant(name), summarize(name)
    with torch.device("meta"):
        model = build_model(name, variant.num_classes, variant.in_channels)
    auxiliary = sum(p.numel() for path, p in model.named_parameters() if path.startswith("auxiliary"))
    assert summary.parameters == count_parameters(name, variant.num_classes, variant.in_channels)
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters - auxiliary


NUMBERED = re.compile(
    r"(?:resnet|vgg|densenet-|densenet-bc-|preact-resnet)(\d+)(?!.*-bn-cifar).*"
)  # vgg16-bn-cifar is 14


@pytest.mark.parametrize("name", [name for name in list_models() if NUMBERED.fullmatch(name)])
def test_depth_is_what_the_name_says(name: str) -> None:
    depth = int(NUMBERED.fullmatch(name)[1])
    if depth <= DEEP:
        assert summarize(name).depth == depth


class UsualBottleneck(nn.Module):
    """DenseNet as most people write it: the layer itself concatenates."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * k, 1, bias=False),
            nn.BatchNorm2d(4 * k), nn.ReLU(), nn.Conv2d(4 * k, k, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.layers(x), x), dim=1)


class UsualTransition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def usual_densenet(k: int, layers_per_block: tuple[int, ...]) -> nn.Sequential:
    channels = 2 * k
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False))
    for index, num_layers in enumerate(layers_per_block):
        if index > 0:
            network.append(UsualTransition(channels))
            channels //= 2
        for _ in range(num_layers):
            network.append(UsualBottleneck(channels, k))
            channels += k
    network.extend([nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(channels, 10)])
    return network


def usual_count(network: nn.Module, image: Tensor) -> int:
    """Bytes as torchsummary counts them: every module's output but those of lists of modules, twice, fp32."""
    values = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        values += output.numel()

    for module in network.modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList | nn.Flatten):
            module.register_forward_hook(count)
    network(image)
    return 2 * 4 * values


@pytest.mark.parametrize(
    ("name", "k", "layers_per_block"),
    [
        ("densenet121-cifar", 32, (6, 12, 24, 16)),
        ("densenet161-cifar", 48, (6, 12, 36, 24)),
        ("densenet-cifar", 12, (6, 12, 24, 16)),
    ],
)
def test_activations_are_those_of_the_usual_summary_of_the_usual_densenet(
    name: str, k: int, layers_per_block: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        usual = usual_densenet(k, layers_per_block)
        assert summarize(name).usual_activation_bytes == usual_count(usual.eval(), torch.empty(1, 3, 32, 32))


def test_the_figures_of_the_four_block_densenet() -> None:
    summary = summarize("densenet121-cifar")
    assert summary.parameters == 6_956_298
    assert f"{4 * summary.parameters / 2**20:.2f}" == "26.54"
    assert f"{summary.usual_activation_bytes / 2**20:.2f}" == "115.98"


def test_other_images_and_classes() -> None:
    native, other = summarize("densenet121"), summarize("densenet121", num_classes=5, image_size=64)
    assert (native.image, native.num_classes) == ((3, 224, 224), 1000)
    assert (other.image, other.num_classes) == ((3, 64, 64), 5)
    assert other.layers[0].multiply_adds == 64 * 3 * 49 * 32**2
    assert native.parameters - other.parameters == 995 * 1025


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    summarize("nin")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_weights_are_allocated() -> None:
    code = (
        "import resource\nfrom candid.models.summary import summarize\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "summarize('lenet'); before = peak(); summarize('vgg19')\n"
        "summarize('mlp-relu', image_size=4096); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 50e6  # the weights would be 575 MB and 60 GB
