import math

import pytest

from candid.errors import InputError
from candid.models import build_model, count_parameters, smallest_image_size


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet19", {}, "No model is called 'resnet19'. Did you mean resnet18 or resnet152 or resnet101?"),
        ("xyzzy", {}, "No model is called 'xyzzy'. `candid models` shows all names."),
        (
            "mobilenetv2-40",
            {},
            "mobilenetv2-40 would have 40 times the channels of mobilenetv2-1.0; the factor must be at least 0.1 "
            "and at most 4. The papers have 0.35 to 1.4.",
        ),
        (
            "ghostnet-0.05-cifar",
            {},
            "ghostnet-0.05-cifar would have 0.05 times the channels of ghostnet-1.0-cifar; the factor must be at least "
            "0.1 and at most 4. The papers have 0.35 to 1.4.",
        ),
        (
            "shufflenetv2-0.7",
            {},
            "No model is called 'shufflenetv2-0.7'. Did you mean shufflenetv2-0.5 or shufflenetv2-2.0 or "
            "shufflenetv2-1.5?",
        ),
        (
            "lenet",
            {"num_classes": 1},
            "num_classes is 1; it must be at least 2. Add a class to the data.",
        ),
        (
            "lenet",
            {"in_channels": 4},
            "in_channels is 4; it must be 1 for grey images or 3 for RGB.",
        ),
        (
            "lenet",
            {"image_size": 15},
            "image_size is 15 px; lenet needs at least 16: use larger images or another model.",
        ),
        (
            "densenet121",
            {"image_size": 28},
            "image_size is 28 px; densenet121 needs at least 29: use larger images or another model.",
        ),
        (
            "resnet18",
            {"image_size": 0},
            "image_size is 0 px; resnet18 needs at least 1: use larger images or another model.",
        ),
        (
            "densenet121",
            {"dropout": 1.0},
            "dropout is 1.0; it must be at least 0 and below 1. Use 0 to turn it off.",
        ),
        (
            "densenet121",
            {"dropout": -0.1},
            "dropout is -0.1; it must be at least 0 and below 1. Use 0 to turn it off.",
        ),
        (
            "densenet121",
            {"dropout": math.nan},
            "dropout is nan; it must be at least 0 and below 1. Use 0 to turn it off.",
        ),
        (
            "resnet18",
            {"dropout": 0.2},
            "dropout is 0.2, but resnet18 has none. Set it to 0, or choose another network.",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(name: str, options: dict[str, float], text: str) -> None:
    with pytest.raises(InputError) as caught:
        build_model(name, **({"num_classes": 10} | options))
    assert str(caught.value) == text


@pytest.mark.parametrize("ask", [smallest_image_size, lambda name: count_parameters(name, 10)])
def test_an_unknown_name_is_refused_wherever_it_is_used(ask) -> None:
    with pytest.raises(InputError) as caught:
        ask("densenet-bc-100")
    assert str(caught.value) == (
        "No model is called 'densenet-bc-100'. "
        "Did you mean densenet-bc-190-40 or densenet-bc-100-12 or densenet-bc-40-60?"
    )
