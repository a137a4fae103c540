import torch
from torch import nn

from candid.models import build_model
from candid.models.whitening import SMALLEST_VARIANCE, WhiteningConvolution, whiten

torch.set_num_threads(1)


def smooth_pictures(number: int = 40) -> torch.Tensor:
    """Pictures whose neighbouring pixels are alike, as those of photographs, [N, 3, 12, 12]."""
    noise = torch.randn(number, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, stride=1) * 3


def test_outputs_are_uncorrelated_and_of_variance_one():
    layer, pictures = WhiteningConvolution(3), smooth_pictures()
    layer.whiten(pictures.split(16))  # in batches of unequal size
    outputs = layer(pictures).transpose(0, 1).flatten(1)  # [24, N * 11 * 11]
    second_moments = (outputs[:12] @ outputs[:12].T / outputs.shape[1]).detach()
    expected = second_moments.diagonal()
    torch.testing.assert_close(second_moments, expected.diag(), atol=1e-4, rtol=0)
    assert expected.max() < 1
    assert expected.min() > 1 - 20 * SMALLEST_VARIANCE  # the variances of these pictures begin at 0.05
    torch.testing.assert_close(outputs[12:], -outputs[:12])


def test_grey_pictures_and_what_never_varies():
    layer = WhiteningConvolution(1)
    layer.whiten([torch.zeros(2, 1, 5, 5)])
    assert layer.filters.shape == (8, 1, 2, 2)
    assert layer.filters.isfinite().all()


def test_filters_are_saved_with_the_weights_but_not_learned():
    layer = WhiteningConvolution(3)
    assert set(layer.state_dict()) == {"filters", "bias"}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_only_a_network_with_such_a_layer_looks():
    plain, network = build_model("resnet20-cifar", 10), build_model("airbench94", 10)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    random_filters = network.stem.filters.clone()
    for each in (plain, network):
        whiten(each, [smooth_pictures()])
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not torch.equal(network.stem.filters, random_filters)
