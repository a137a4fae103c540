from itertools import pairwise
from pathlib import Path

import pytest
import torchvision

from candid.models import ALIASES, count_parameters, find_variant, list_models

# (number of classes, image channels, trained values) of every network.
# torchvision: `num_params` in the metadata of its published weights; a test below reads them again.
# paper: rounded in Table 2 of Huang et al. 2017, Table 6 of He et al. 2016 or Table 3 of Springenberg et al. 2015; the
# exact numbers follow from the formulas below or in the family's test, which use nothing of the package.
# formula: only from those formulas.
PARAMETERS = {
    "lenet": (10, 1, 44_426),  # formula
    "lenet-relu": (10, 1, 44_426),  # formula
    "lenet-bn": (10, 1, 44_878),  # formula
    "mlp-linear": (10, 1, 266_610),  # formula
    "mlp-relu": (10, 1, 266_610),  # formula
    "mlp-bn": (10, 1, 267_410),  # formula
    "convnet": (10, 1, 1_425_064),  # formula
    "alexnet": (1000, 3, 61_100_840),  # torchvision
    "alexnet-notes": (10, 1, 46_764_746),  # formula
    "vgg11": (1000, 3, 132_863_336),  # torchvision; the paper: 133 M
    "vgg13": (1000, 3, 133_047_848),  # torchvision; the paper: 133 M
    "vgg16": (1000, 3, 138_357_544),  # torchvision; the paper: 138 M
    "vgg19": (1000, 3, 143_667_240),  # torchvision; the paper: 144 M
    "vgg11-bn": (1000, 3, 132_868_840),  # torchvision
    "vgg13-bn": (1000, 3, 133_053_736),  # torchvision
    "vgg16-bn": (1000, 3, 138_365_992),  # torchvision
    "vgg19-bn": (1000, 3, 143_678_248),  # torchvision
    "vgg11-notes": (10, 1, 128_806_154),  # formula
    "vgg11-notes-small": (10, 1, 2_018_346),  # formula
    "vgg16-bn-cifar": (10, 3, 14_728_266),  # formula
    "nin": (10, 3, 966_986),  # formula
    "nin-notes": (10, 1, 1_992_166),  # formula
    "googlenet": (1000, 3, 13_378_280),  # formula
    "googlenet-bn": (1000, 3, 13_004_888),  # torchvision, auxiliary classifiers included
    "googlenet-notes": (10, 1, 5_977_530),  # formula
    "googlenet-notes-aux": (10, 1, 6_395_598),  # formula
    "googlenet-cifar": (10, 3, 5_871_914),  # formula
    "resnet18": (1000, 3, 11_689_512),  # torchvision
    "resnet34": (1000, 3, 21_797_672),  # torchvision
    "resnet50": (1000, 3, 25_557_032),  # torchvision
    "resnet101": (1000, 3, 44_549_160),  # torchvision
    "resnet152": (1000, 3, 60_192_808),  # torchvision
    "resnext50-32x4d": (1000, 3, 25_028_904),  # torchvision; the paper: 25.0 M
    "resnext101-32x8d": (1000, 3, 88_791_336),  # torchvision
    "resnext101-64x4d": (1000, 3, 83_455_272),  # torchvision
    "wide-resnet50-2": (1000, 3, 68_883_240),  # torchvision; the paper: 68.9 M
    "wide-resnet101-2": (1000, 3, 126_886_696),  # torchvision
    "resnet18-notes": (10, 1, 11_175_370),  # formula
    "resnet18-cifar": (10, 3, 11_173_962),  # formula
    "resnet34-cifar": (10, 3, 21_282_122),  # formula
    "resnet50-cifar": (10, 3, 23_520_842),  # formula
    "resnet20-cifar": (10, 3, 269_722),  # paper, 0.27 M
    "resnet32-cifar": (10, 3, 464_154),  # paper, 0.46 M
    "resnet44-cifar": (10, 3, 658_586),  # paper, 0.66 M
    "resnet56-cifar": (10, 3, 853_018),  # paper, 0.85 M
    "resnet110-cifar": (10, 3, 1_727_962),  # paper, 1.7 M
    "resnet1202-cifar": (10, 3, 19_421_274),  # paper, 19.4 M
    "stochastic-depth-resnet110": (10, 3, 1_727_962),  # paper, 1.7 M
    "stochastic-depth-resnet1202": (10, 3, 19_421_274),  # He et al. 2016, 19.4 M
    "resnext29-8x64d": (10, 3, 34_426_698),  # paper, 34.4 M
    "resnext29-16x64d": (10, 3, 68_155_210),  # paper, 68.1 M without normalisations: test_resnet.py
    "preact-resnet110": (10, 3, 1_727_962),  # paper, 1.7 M
    "preact-resnet164": (10, 3, 1_703_258),  # paper, 1.7 M
    "preact-resnet1001": (10, 3, 10_327_706),  # paper, 10.2 M without normalisations: test_preact_resnet.py
    "preact-resnet18-cifar": (10, 3, 11_171_146),  # formula in test_preact_resnet.py
    "wrn-16-4": (10, 3, 2_748_890),  # paper, 2.7 M
    "wrn-16-8": (10, 3, 10_961_370),  # paper, 11.0 M
    "wrn-28-10": (10, 3, 36_479_194),  # paper, 36.5 M
    "wrn-40-4": (10, 3, 8_949_210),  # paper, 8.9 M
    "densenet121": (1000, 3, 7_978_856),  # torchvision
    "densenet169": (1000, 3, 14_149_480),  # torchvision
    "densenet201": (1000, 3, 20_013_928),  # torchvision
    "densenet264": (1000, 3, 33_337_704),  # formula
    "densenet161": (1000, 3, 28_681_000),  # torchvision
    "densenet121-cifar": (10, 3, 6_956_298),  # formula
    "densenet169-cifar": (10, 3, 12_493_322),  # formula
    "densenet201-cifar": (10, 3, 18_104_330),  # formula
    "densenet161-cifar": (10, 3, 26_482_378),  # formula
    "densenet-cifar": (10, 3, 1_000_618),  # formula
    "densenet-40-12": (10, 3, 1_019_722),  # paper, 1.0 M
    "densenet-100-12": (10, 3, 6_979_642),  # paper, 7.0 M
    "densenet-100-24": (10, 3, 27_249_082),  # paper, 27.2 M
    "densenet-bc-100-12": (10, 3, 769_162),  # paper, 0.8 M
    "densenet-bc-250-24": (10, 3, 15_324_406),  # paper, 15.3 M
    "densenet-bc-190-40": (10, 3, 25_624_430),  # paper, 25.6 M
    "densenet-bc-40-12": (10, 3, 176_122),  # formula
    "densenet-bc-40-36": (10, 3, 1_542_682),  # authors' repository, 1.5 M
    "densenet-bc-40-48": (10, 3, 2_733_130),  # authors' repository, 2.7 M
    "densenet-bc-40-60": (10, 3, 4_261_690),  # authors' repository, 4.3 M
    "densenet-speed": (10, 3, 1_284_258),  # formula
    "densenet-notes": (10, 1, 757_322),  # formula
    "mobilenetv2-0.35": (1000, 3, 1_677_128),  # timm; authors' repository, 1.66 M without normalisations
    "mobilenetv2-0.5": (1000, 3, 1_968_680),  # timm; authors' repository, 1.95 M likewise: test_mobilenetv2.py
    "mobilenetv2-0.75": (1000, 3, 2_636_424),  # timm; authors' repository, 2.61 M
    "mobilenetv2-1.0": (1000, 3, 3_504_872),  # torchvision; authors' repository, 3.47 M; the paper: 3.4 M
    "mobilenetv2-1.3": (1000, 3, 5_386_792),  # torchvision's with this width; authors' repository, 5.34 M
    "mobilenetv2-1.4": (1000, 3, 6_108_776),  # timm; authors' repository, 6.06 M; printed as 6.9 M
    "mobilenetv2-cifar": (10, 3, 2_236_682),  # torchvision's with 10 classes
    "airbench94": (10, 3, 1_972_514),  # paper, 1.97 M without gains: test_airbench.py
    "shufflenetv2-0.5": (1000, 3, 1_366_792),  # torchvision; the paper: 1.4 M
    "shufflenetv2-1.0": (1000, 3, 2_278_604),  # torchvision; the paper: 2.3 M
    "shufflenetv2-1.5": (1000, 3, 3_503_624),  # torchvision; the paper: 3.5 M
    "shufflenetv2-2.0": (1000, 3, 7_393_996),  # torchvision; the paper: 7.4 M
    "shufflenetv2-0.5-cifar": (10, 3, 352_042),  # torchvision's with 10 classes
    "shufflenetv2-1.0-cifar": (10, 3, 1_263_854),  # torchvision's with 10 classes
    "ghostnet-0.5": (1000, 3, 2_587_292),  # timm; the paper: 2.6 M
    "ghostnet-1.0": (1000, 3, 5_182_508),  # timm; the paper: 5.2 M
    "ghostnet-1.3": (1000, 3, 7_358_820),  # timm; the paper: 7.3 M without normalisations: test_ghostnet.py
    "ghostnet-1.0-cifar": (10, 3, 3_913_790),  # timm's, less one depthwise convolution: test_ghostnet.py
    "all-cnn-c": (10, 3, 1_369_738),  # paper, 1.4 M
    "dsn": (10, 3, 3_547_496),  # formula, companions included
    "highway19": (10, 3, 2_256_838),  # paper, 2.3 M
    "fractalnet": (10, 3, 33_724_618),  # formula; in print 38.6 M, see fractalnet.py
    "fractalnet-small": (10, 3, 2_113_594),  # paper, 2.1 M
}

# Millions as printed in the papers.
PRINTED = {
    "vgg11": "133",
    "vgg13": "133",
    "vgg16": "138",
    "vgg19": "144",
    "resnet20-cifar": "0.27",
    "resnet32-cifar": "0.46",
    "resnet44-cifar": "0.66",
    "resnet56-cifar": "0.85",
    "resnet110-cifar": "1.7",
    "resnet1202-cifar": "19.4",
    "resnext50-32x4d": "25.0",
    "wide-resnet50-2": "68.9",
    "stochastic-depth-resnet110": "1.7",
    "stochastic-depth-resnet1202": "19.4",
    "resnext29-8x64d": "34.4",
    "preact-resnet110": "1.7",
    "preact-resnet164": "1.7",
    "wrn-16-4": "2.7",
    "wrn-16-8": "11.0",
    "wrn-28-10": "36.5",
    "wrn-40-4": "8.9",
    "densenet-40-12": "1.0",
    "densenet-100-12": "7.0",
    "densenet-100-24": "27.2",
    "densenet-bc-100-12": "0.8",
    "densenet-bc-250-24": "15.3",
    "densenet-bc-190-40": "25.6",
    "densenet-bc-40-36": "1.5",
    "densenet-bc-40-48": "2.7",
    "densenet-bc-40-60": "4.3",
    "shufflenetv2-0.5": "1.4",
    "shufflenetv2-1.0": "2.3",
    "shufflenetv2-1.5": "3.5",
    "shufflenetv2-2.0": "7.4",
    "ghostnet-0.5": "2.6",
    "ghostnet-1.0": "5.2",
    "all-cnn-c": "1.4",
    "highway19": "2.3",
    "fractalnet-small": "2.1",
}


@pytest.mark.parametrize(("name", "row"), PARAMETERS.items(), ids=PARAMETERS)
def test_parameter_count(name: str, row: tuple[int, int, int]) -> None:
    num_classes, in_channels, expected = row
    assert count_parameters(name, num_classes, in_channels) == expected


def test_counts_come_in_the_order_of_the_registry() -> None:
    assert list(PARAMETERS) == [name for name in list_models() if name in PARAMETERS]


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_its_count_here_or_in_the_test_of_its_family(name: str) -> None:
    if name not in PARAMETERS:
        variant = find_variant(name)
        number = f"{count_parameters(name, variant.num_classes, variant.in_channels):_}"
        own = Path(__file__).with_name(f"test_{variant.family}.py")
        assert number in own.read_text(), f"{own.name} does not say that {name} has {number} trained values"


# Not of `googlenet`: theirs is our `googlenet-bn`, published without auxiliary classifiers (test_googlenet.py).
THEIRS = [n for n in torchvision.models.list_models(torchvision.models) if n != "googlenet"]


@pytest.mark.parametrize("their_name", [n for n in THEIRS if ALIASES.get(n, n) in PARAMETERS])
def test_count_is_what_torchvision_publishes(their_name: str) -> None:
    published = torchvision.models.get_model_weights(their_name).DEFAULT.meta["num_params"]
    assert PARAMETERS[ALIASES.get(their_name, their_name)] == (1000, 3, published)


@pytest.mark.parametrize(("name", "printed"), PRINTED.items())
def test_count_rounds_to_what_the_paper_prints(name: str, printed: str) -> None:
    digits = len(printed.partition(".")[2])
    assert f"{PARAMETERS[name][2] / 1e6:.{digits}f}" == printed


def conv(c_in: int, c_out: int, side: int) -> int:
    return c_in * c_out * side**2


def norm(channels: int) -> int:
    return 2 * channels


def linear(c_in: int, c_out: int) -> int:
    return (c_in + 1) * c_out


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_cifar_resnet_count_follows_from_its_depth(depth: int) -> None:
    """Section 4.2: n blocks of two convolutions for each of 16, 32 and 64 channels; shortcuts are free."""
    n, count = (depth - 2) // 6, conv(3, 16, 3) + norm(16) + linear(64, 10)
    for before, width in [(16, 16), (16, 32), (32, 64)]:
        count += conv(before, width, 3) + (2 * n - 1) * conv(width, width, 3) + 2 * n * norm(width)
    assert PARAMETERS[f"resnet{depth}-cifar"][2] == count


@pytest.mark.parametrize(
    ("name", "blocks", "expansion"),
    [("resnet18", (2, 2, 2, 2), 1), ("resnet34", (3, 4, 6, 3), 1), ("resnet50", (3, 4, 6, 3), 4)],
)
def test_small_resnet_stem_changes_the_count_by_the_first_convolution_alone(
    name: str, blocks: tuple[int, ...], expansion: int
) -> None:
    large, small = PARAMETERS[name][2], PARAMETERS[f"{name}-cifar"][2]
    fewer_logits = linear(512 * expansion, 1000) - linear(512 * expansion, 10)
    assert large - small == fewer_logits + conv(3, 64, 7) - conv(3, 64, 3)
    if name == "resnet18":
        grey = fewer_logits + conv(2, 64, 7)
        assert large - PARAMETERS["resnet18-notes"][2] == grey


DENSENETS = {  # k, layers per block, stem channels, side of the stem's convolution, bottleneck, theta
    "densenet264": (32, (6, 12, 64, 48), 64, 7, True, 0.5),
    "densenet121-cifar": (32, (6, 12, 24, 16), 64, 3, True, 0.5),
    "densenet169-cifar": (32, (6, 12, 32, 32), 64, 3, True, 0.5),
    "densenet201-cifar": (32, (6, 12, 48, 32), 64, 3, True, 0.5),
    "densenet161-cifar": (48, (6, 12, 36, 24), 96, 3, True, 0.5),
    "densenet-cifar": (12, (6, 12, 24, 16), 24, 3, True, 0.5),
    "densenet-40-12": (12, (12,) * 3, 16, 3, False, 1.0),
    "densenet-100-12": (12, (32,) * 3, 16, 3, False, 1.0),
    "densenet-100-24": (24, (32,) * 3, 16, 3, False, 1.0),
    "densenet-bc-100-12": (12, (16,) * 3, 24, 3, True, 0.5),
    "densenet-bc-250-24": (24, (41,) * 3, 48, 3, True, 0.5),
    "densenet-bc-190-40": (40, (31,) * 3, 80, 3, True, 0.5),
    "densenet-bc-40-12": (12, (6,) * 3, 24, 3, True, 0.5),
    "densenet-bc-40-36": (36, (6,) * 3, 72, 3, True, 0.5),
    "densenet-bc-40-48": (48, (6,) * 3, 96, 3, True, 0.5),
    "densenet-bc-40-60": (60, (6,) * 3, 120, 3, True, 0.5),
    "densenet-notes": (32, (4, 4, 4, 4), 64, 7, False, 0.5),
}


@pytest.mark.parametrize("name", DENSENETS)
def test_densenet_count_follows_from_the_paper(name: str) -> None:
    k, blocks, channels, side, bottleneck, theta = DENSENETS[name]
    num_classes, in_channels, expected = PARAMETERS[name]
    count = conv(in_channels, channels, side) + (norm(channels) if side == 7 else 0)
    for index, num_layers in enumerate(blocks):
        if index > 0:
            count += norm(channels) + conv(channels, int(theta * channels), 1)
            channels = int(theta * channels)
        for _ in range(num_layers):
            if bottleneck:
                count += norm(channels) + conv(channels, 4 * k, 1) + norm(4 * k) + conv(4 * k, k, 3)
            else:
                count += norm(channels) + conv(channels, k, 3)
            channels += k
    assert count + norm(channels) + linear(channels, num_classes) == expected


def test_lenet_count_follows_from_its_layers() -> None:
    plain = conv(1, 6, 5) + 6 + conv(6, 16, 5) + 16 + linear(256, 120) + linear(120, 84) + linear(84, 10)
    assert PARAMETERS["lenet"][2] == PARAMETERS["lenet-relu"][2] == plain
    assert PARAMETERS["lenet-bn"][2] == plain + norm(6) + norm(16) + norm(120) + norm(84)


def chain(widths: tuple[int, ...], sides: tuple[int, ...]) -> int:
    """Values of layers with bias one after another: convolutions of `sides`, or linear layers where it is 1."""
    return sum(conv(*pair, side) + pair[1] for pair, side in zip(pairwise(widths), sides, strict=True))


def test_count_of_small_networks_follows_from_their_layers() -> None:
    plain = chain((28 * 28, 300, 100, 10), (1, 1, 1))
    assert PARAMETERS["mlp-linear"][2] == PARAMETERS["mlp-relu"][2] == plain
    assert PARAMETERS["mlp-bn"][2] == plain + norm(300) + norm(100)
    assert PARAMETERS["convnet"][2] == chain((1, 25, 50), (3, 3)) + chain((1250, 1024, 128, 10), (1, 1, 1))


def test_count_of_alexnet_and_vgg_of_the_notes_follows_from_their_layers() -> None:
    features = chain((1, 96, 256, 384, 384, 256), (11, 5, 3, 3, 3))
    assert PARAMETERS["alexnet-notes"][2] == features + chain((6400, 4096, 4096, 10), (1, 1, 1))
    widths = (64, 128, 256, 256, 512, 512, 512, 512)
    large = chain((1, *widths), (3,) * 8) + chain((25088, 4096, 4096, 10), (1, 1, 1))
    small = chain((1, *(width // 8 for width in widths)), (3,) * 8) + chain((3136, 512, 512, 10), (1, 1, 1))
    assert (PARAMETERS["vgg11-notes"][2], PARAMETERS["vgg11-notes-small"][2]) == (large, small)


def test_cifar_vgg_is_vgg16_bn_with_one_linear_layer() -> None:
    linears = chain((25088, 4096, 4096, 1000), (1, 1, 1))
    assert PARAMETERS["vgg16-bn-cifar"][2] == PARAMETERS["vgg16-bn"][2] - linears + linear(512, 10)
