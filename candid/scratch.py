"""The operations of convolutional networks written by hand, for whoever wants to see what they do.

Equal to torch's, values and gradients alike, and slower: candid's networks are built from torch's. Everything is
made of sums, products and maxima of tensors, so that gradients come by themselves. Shapes: N pictures, C channels in, D
channels out, H x W px; kernels of h x w px.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from candid.errors import InputError


def output_side(side: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """How many places a window of `kernel` px has along `side` px: floor((side - kernel + 2 padding) / stride) + 1.

    Raises:
        InputError: if it does not fit once.
    """
    places = (side - kernel + 2 * padding) // stride + 1
    if places < 1:
        raise InputError(
            f"A window of {kernel} px does not fit into {side} px with a padding of {padding}; expected at most "
            f"{side + 2 * padding} px. Use a smaller window, or more padding."
        )
    return places


def correlate(image: Tensor, kernel: Tensor) -> Tensor:
    """What a kernel [h, w] sees at each place of an image [H, W], [H - h + 1, W - w + 1]: the cross-correlation.

    Networks call it convolution, which would turn the kernel by 180 degrees first; a kernel that is learned does not
    mind.
    """
    return conv2d(image[None, None], kernel[None, None])[0, 0]


def conv2d(images: Tensor, kernels: Tensor, bias: Tensor | None = None, *, padding: int = 0, stride: int = 1) -> Tensor:
    """Cross-correlation of images [N, C, H, W] with kernels [D, C, h, w], plus bias [D]: [N, D, H', W'].

    An output channel is the sum over the input channels, each with a kernel of its own. H' and W' are as
    `output_side` says; around the images are `padding` zeros.
    """
    views = windows(images, kernels.shape[2:], padding, stride)  # [N, C, h, w, H', W']
    maps = torch.einsum("nchwyx,dchw->ndyx", views, kernels)
    return maps if bias is None else maps + bias[:, None, None]


def conv1x1(images: Tensor, weights: Tensor) -> Tensor:
    """A convolution with kernels of 1 x 1 px: the product of weights [D, C] with the channels at each place."""
    pixels = images.flatten(2)  # [N, C, H * W]
    return (weights @ pixels).unflatten(2, images.shape[2:])


def max_pool2d(images: Tensor, kernel: int, *, padding: int = 0, stride: int | None = None) -> Tensor:
    """The largest value in each window of `kernel` px, which is also the stride where none is given."""
    views = windows(images, (kernel, kernel), padding, stride or kernel, fill=-torch.inf)
    return views.flatten(2, 3).amax(dim=2)


def avg_pool2d(images: Tensor, kernel: int, *, padding: int = 0, stride: int | None = None) -> Tensor:
    """The mean of each window of `kernel` px, with the zeros of the padding, if there is any, among the values."""
    return windows(images, (kernel, kernel), padding, stride or kernel).mean(dim=(2, 3))


def windows(images: Tensor, kernel: Iterable[int], padding: int, stride: int, fill: float = 0.0) -> Tensor:
    """All windows of h x w px of images [N, C, H, W] with `fill` around them: [N, C, h, w, H', W'].

    At [:, :, i, j] lies, for each place of the window, the pixel in its row i and column j.
    """
    num, channels, height, width = images.shape
    h, w = kernel
    rows, columns = output_side(height, h, padding, stride), output_side(width, w, padding, stride)
    padded = images.new_full((num, channels, height + 2 * padding, width + 2 * padding), fill)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    parts = [
        padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride][:, :, :rows, :columns]
        for i in range(h)
        for j in range(w)
    ]
    return torch.stack(parts, dim=2).unflatten(2, (h, w))


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) of features [N, C] or maps [N, C, H, W].

    In training, each channel has its mean removed and is divided by its standard deviation, both over the batch and all
    places; then it is scaled by `weight` and moved by `bias`, which are learned. Running averages of mean and variance
    are kept meanwhile; evaluation goes by them, so that a picture's output does not depend on its neighbours. They are
    buffers of the module, which move with it from device to device and are saved with its weights.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """`momentum` is the share of the new batch in the running averages."""
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        if not self.training:
            return self._normalise(x, self.running_mean, self.running_var)
        others = [dim for dim in range(x.dim()) if dim != 1]
        mean, number = x.mean(dim=others), x.numel() // x.shape[1]
        var = ((x - _per_channel(mean, x)) ** 2).mean(dim=others)
        with torch.no_grad():
            unbiased = var * number / (number - 1)  # the batch is a sample of what evaluation will meet
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return self._normalise(x, mean, var)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = self.weight / (var + self.eps).sqrt()
        return _per_channel(scale, x) * (x - _per_channel(mean, x)) + _per_channel(self.bias, x)


def dropout(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Each value is 0 with probability p, else divided by 1 - p, so that its expectation stays (JMLR 15:1929, 2014).

    For training alone: evaluation leaves values as they are.
    """
    is_kept = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) >= p
    return torch.where(is_kept, x / (1 - p), torch.zeros_like(x))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over N pictures of -log softmax(logits)[label], in nats: logits [N, classes], labels int64 [N].

    The largest logit is taken out before exponentials are: softmax does not change, and none is infinite.
    """
    shifted = logits - logits.amax(dim=1, keepdim=True).detach()
    log_sum = shifted.exp().sum(dim=1).log()
    return (log_sum - shifted.gather(1, labels[:, None]).squeeze(1)).mean()


class SGD:
    """Stochastic gradient descent with momentum: v = momentum v + gradient, w = w - rate v."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, momentum: float = 0.0) -> None:
        """Velocities begin at 0."""
        self.parameters, self.rate, self.momentum = list(parameters), rate, momentum
        self.velocities = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and forget the gradient."""
        for parameter, velocity in zip(self.parameters, self.velocities, strict=True):
            if parameter.grad is not None:
                velocity.mul_(self.momentum).add_(parameter.grad)
                parameter.sub_(self.rate * velocity)
                parameter.grad = None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values [C] in a shape that goes with x [N, C, ...]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
