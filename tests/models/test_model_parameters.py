import pytest
import torchvision

from candid.models import count_parameters, list_models

# (number of classes, image channels, trained values) of every network.
# torchvision: `num_params` in the metadata of its published weights; a test below reads them again.
# paper: rounded in Table 2 of Huang et al. 2017 or Table 6 of He et al. 2016; the exact numbers follow
# from the formulas below, which use nothing of the package.
# formula: only from the formulas below.
PARAMETERS = {
    "lenet": (10, 1, 44_426),  # formula
    "lenet-relu": (10, 1, 44_426),  # formula
    "lenet-bn": (10, 1, 44_878),  # formula
    "resnet18": (1000, 3, 11_689_512),  # torchvision
    "resnet34": (1000, 3, 21_797_672),  # torchvision
    "resnet50": (1000, 3, 25_557_032),  # torchvision
    "resnet101": (1000, 3, 44_549_160),  # torchvision
    "resnet152": (1000, 3, 60_192_808),  # torchvision
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
    "densenet-notes": (10, 1, 757_322),  # formula
}

# Millions as printed in the papers.
PRINTED = {
    "resnet20-cifar": "0.27",
    "resnet32-cifar": "0.46",
    "resnet44-cifar": "0.66",
    "resnet56-cifar": "0.85",
    "resnet110-cifar": "1.7",
    "resnet1202-cifar": "19.4",
    "densenet-40-12": "1.0",
    "densenet-100-12": "7.0",
    "densenet-100-24": "27.2",
    "densenet-bc-100-12": "0.8",
    "densenet-bc-250-24": "15.3",
    "densenet-bc-190-40": "25.6",
}


@pytest.mark.parametrize(("name", "row"), PARAMETERS.items(), ids=PARAMETERS)
def test_parameter_count(name: str, row: tuple[int, int, int]) -> None:
    num_classes, in_channels, expected = row
    assert count_parameters(name, num_classes, in_channels) == expected


def test_every_network_has_its_count_here() -> None:
    assert list(PARAMETERS) == list_models()


@pytest.mark.parametrize(
    "name", [name for name in PARAMETERS if name in torchvision.models.list_models(torchvision.models)]
)
def test_count_is_what_torchvision_publishes(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert PARAMETERS[name] == (1000, 3, published)


@pytest.mark.parametrize(("name", "printed"), PRINTED.items())
def test_count_rounds_to_what_the_paper_prints(name: str, printed: str) -> None:
    digits = len(printed.split(".")[1])
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
