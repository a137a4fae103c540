# %% [markdown] lang="en"
# # 03 Padding, stride, channels and pooling
#
# A window has a size, moves in steps, and may begin outside of the picture. Afterwards you can
#
# - tell the side of a layer's output before running it,
# - say what padding and stride are for, and what each does wrong if one does not look,
# - count weights and multiplications of a layer from its channels,
# - use maximum and average pooling, and say where their gradients go,
# - count what part of the picture a value has seen, and measure it.
#
# Papers: Krizhevsky, Sutskever and Hinton 2012, *ImageNet Classification with Deep Convolutional Neural Networks*; He
# et al. 2015, *Deep Residual Learning for Image Recognition*, arXiv:1512.03385; Luo et al. 2017, *Understanding the
# Effective Receptive Field in Deep Convolutional Neural Networks*, arXiv:1701.04128. Time: about 60 minutes with the
# exercises.

# %% [markdown] lang="zh"
# # 03 填充、步幅、通道与汇聚
#
# 窗口有大小，按步移动，也可以从图像之外开始。学完本课，你将能够：
#
# - 不运行就说出一层输出的边长，
# - 说明填充和步幅有什么用，以及不留意时各会出什么错，
# - 由通道数算出一层的权重数和乘法次数，
# - 使用最大汇聚和平均汇聚，并说出梯度流向哪里，
# - 算出一个值看到了图像的哪一部分，并把它测量出来。
#
# 论文：Krizhevsky、Sutskever 和 Hinton 2012，*ImageNet Classification with Deep Convolutional Neural Networks*；
# 何恺明等 2015，*Deep Residual Learning for Image Recognition*，arXiv:1512.03385；Luo 等 2017，*Understanding the
# Effective Receptive Field in Deep Convolutional Neural Networks*，arXiv:1701.04128。用时：连同练习约 60 分钟。

# %%
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional

from candid import scratch
from candid.data.catalog import open_data_set
from candid.models import build_model, find_variant
from candid.models.summary import summarize

# %% [markdown] lang="en"
# ## How large is the output?
#
# A window of $k$ px goes in steps of $s$ px (the stride) along a side of $n$ px that has $p$ more px at both ends
# (the padding). The first place is the beginning; each further one takes $s$ px of what is left:
#
# $$\left\lfloor \frac{n - k + 2p}{s} \right\rfloor + 1$$
#
# What is left over at the end is not seen by any window. The rule against torch, for all small cases:

# %% [markdown] lang="zh"
# ## 输出有多大？
#
# 一个 $k$ 像素的窗口，沿着长 $n$ 像素、两端各补了 $p$ 像素（填充）的边，每步走 $s$ 像素（步幅）。起点算第一个位置，
# 此后每个位置用掉余下长度中的 $s$ 像素：
#
# $$\left\lfloor \frac{n - k + 2p}{s} \right\rfloor + 1$$
#
# 末尾不足一步的部分，任何窗口都看不到。下面对所有小的情形，把这条规则与 torch 对照：

# %%
cases = 0
for n, k, p, s in product(range(1, 12), range(1, 6), range(3), range(1, 4)):
    if k <= n + 2 * p:
        made = functional.conv2d(torch.zeros(1, 1, n, n), torch.zeros(1, 1, k, k), padding=p, stride=s)
        assert made.shape[2] == scratch.output_side(n, k, padding=p, stride=s)
        cases += 1
print(cases, "cases, all equal")

# %% [markdown] lang="en"
# ## The windows of LeNet, AlexNet and ResNet
#
# A hook is a function that a layer calls after each forward pass. This one writes down what windows a network has, in
# the order in which a picture meets them.

# %% [markdown] lang="zh"
# ## LeNet、AlexNet 和 ResNet 的窗口
#
# 钩子是每次前向传播之后由层调用的函数。下面的钩子按图像经过的顺序，记下一个网络有哪些窗口。


# %%
class Window(NamedTuple):
    kind: str
    kernel: int
    padding: int
    stride: int
    side: int  # px of the maps that it goes over
    places: int  # px of the maps that come out


# %%
def windows_of(name: str) -> list[Window]:
    found, variant = [], find_variant(name)

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        sizes = (layer.kernel_size, layer.padding, layer.stride)
        k, p, s = (size if isinstance(size, int) else size[0] for size in sizes)
        found.append(Window(type(layer).__name__, k, p, s, inputs[0].shape[2], output.shape[2]))

    model = build_model(name, num_classes=10, in_channels=variant.in_channels).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, variant.in_channels, variant.image_size, variant.image_size))
    return found


# %% [markdown] lang="en"
# Of the ResNets we take the stem, which is what comes before the blocks: seven by seven and a pooling for pictures of
# 224 px, a single three by three for those of 32 px, which have nothing to give away.

# %% [markdown] lang="zh"
# 对 ResNet 只取残差块之前的起始层：224 像素的图像用七乘七的卷积加一次汇聚；32 像素的图像没有多余的像素可丢，
# 只用一个三乘三的卷积。

# %%
networks = {
    "lenet": windows_of("lenet"),
    "alexnet": windows_of("alexnet"),
    "resnet18": windows_of("resnet18")[:2],
    "resnet18-cifar": windows_of("resnet18-cifar")[:1],
}
for name, windows in networks.items():
    for kind, k, p, s, side, places in windows:
        steps = (side - k + 2 * p) / s
        print(f"{name:15} {kind:10} ({side:3} - {k:2} + 2 * {p}) / {s} + 1 = {steps + 1:6.2f} -> {places:3}")
        assert scratch.output_side(side, k, padding=p, stride=s) == places

# %% [markdown] lang="en"
# Where the number has a fraction, the last columns are cut off. The first layer of `alexnet-notes`, which has no
# padding, shows it: the gradient of its output is 0 at the columns that no window sees.

# %% [markdown] lang="zh"
# 结果带小数时，最后几列就被丢掉了。没有填充的 `alexnet-notes` 的第一层可以说明这一点：在没有窗口看到的列上，
# 输出的梯度为 0。

# %%
first = windows_of("alexnet-notes")[0]
pixels = torch.ones(1, 1, first.side, first.side, requires_grad=True)
seen = functional.conv2d(pixels, torch.ones(1, 1, first.kernel, first.kernel), stride=first.stride)
seen.sum().backward()
unseen = (pixels.grad[0, 0].sum(dim=0) == 0).nonzero().flatten().tolist()
print(f"the last window ends behind column {(first.places - 1) * first.stride + first.kernel - 1}; unseen: {unseen}")
assert unseen == [first.side - 1]

# %% [markdown] lang="en"
# ## Padding
#
# Without padding, a 3 x 3 kernel takes away a pixel at each border, and a deep network runs out of picture. With
# $p = (k - 1) / 2$ the side stays. But padding is made of zeros, which no picture has: near the border a kernel sees
# something else than inside. A mean of nine shows how much.

# %% [markdown] lang="zh"
# ## 填充
#
# 没有填充时，3 x 3 的卷积核在每条边上去掉一个像素，网络一深，图像就用完了。取 $p = (k - 1) / 2$，边长保持不变。
# 但填充用的是零，而真实的图像里并没有这样一圈零：在边界附近，卷积核看到的与内部不同。
# 用九个数的均值就能看出差别有多大。

# %%
averaged = scratch.avg_pool2d(torch.ones(1, 1, 5, 5), 3, padding=1, stride=1)[0, 0]
print(f"corner {averaged[0, 0]:.3f}, border {averaged[0, 2]:.3f}, inside {averaged[2, 2]:.3f}")
assert torch.allclose(averaged[0, [0, 2]] * 9, torch.tensor([4.0, 6.0]))

# %%
data_set = open_data_set("fashion-mnist-mini")
examples = data_set.openers["train"]()
is_shirt = examples.labels == data_set.class_names.index("Pullover")
picture = examples.images[is_shirt][1:2].float() / 255  # [1, 1, 28, 28]
figure, axes = plt.subplots(2, 4, figsize=(6.4, 3.4), layout="constrained")
for padding, row in enumerate(axes):
    for times, axis in zip((0, 3, 6, 9), row, strict=True):
        blurred = picture
        for _ in range(times):
            blurred = scratch.avg_pool2d(blurred, 3, padding=padding, stride=1)
        lost = (28 - blurred.shape[2]) // 2
        axis.imshow(functional.pad(blurred[0, 0], [lost] * 4, value=torch.nan).numpy(), cmap="gray_r")
        axis.set_title(f"padding {padding}, {times} times", fontsize=8)
        axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown] lang="en"
# ## Stride
#
# A stride of 2 is the same as going over all places and keeping every second one. It calculates a quarter of the
# values, and the next layers have a quarter of the places to go over. That is how networks pay for more channels.

# %% [markdown] lang="zh"
# ## 步幅
#
# 步幅为 2，等于走遍所有位置，再每隔一个留一个。这样只算四分之一的值，后面各层要走的位置也只有四分之一。
# 网络正是靠它换来更多的通道。

# %%
generator = torch.Generator().manual_seed(0)
maps, kernels = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
every, second = scratch.conv2d(maps, kernels, padding=1), scratch.conv2d(maps, kernels, padding=1, stride=2)
print(tuple(every.shape), tuple(second.shape))
assert torch.allclose(second, every[:, :, ::2, ::2], atol=1e-4)

# %% [markdown] lang="en"
# ## Channels, and what they cost
#
# A layer from C to D channels has $D \cdot C \cdot k^2$ weights, and multiplies with each of them once at each of its
# places. So weights do not depend on the size of the picture, and multiplications do. In AlexNet nearly all weights
# are in the linear layers, and nearly all multiplications in the convolutions.

# %% [markdown] lang="zh"
# ## 通道及其代价
#
# 从 C 个通道到 D 个通道的层有 $D \cdot C \cdot k^2$ 个权重，在每个位置上与每个权重各相乘一次。
# 所以权重数与图像大小无关，乘法次数则有关。在 AlexNet 里，几乎所有权重都在线性层，几乎所有乘法都在卷积层。

# %%
layers = [layer for layer in summarize("alexnet").layers if layer.multiply_adds]
print("layer          output           parameters   multiplications")
for layer in layers:
    print(f"{layer.kind:14} {layer.output!s:14} {layer.parameters:12,} {layer.multiply_adds:13,}")
convolutions = [layer for layer in layers if layer.kind.startswith("conv")]
share_of_parameters = sum(layer.parameters for layer in convolutions) / sum(layer.parameters for layer in layers)
share_of_work = sum(layer.multiply_adds for layer in convolutions) / sum(layer.multiply_adds for layer in layers)
print(f"convolutions: {share_of_parameters:.0%} of the parameters, {share_of_work:.0%} of the multiplications")
second = convolutions[1]  # from 64 channels, 5 x 5
assert second.multiply_adds == 64 * 5 * 5 * second.output[0] * second.output[1] * second.output[2]
assert share_of_parameters < 0.1 < 0.9 < share_of_work

# %% [markdown] lang="en"
# ## Pooling
#
# Pooling has a window and no weights: it takes the largest value of each window, or the mean, for each channel by
# itself.

# %% [markdown] lang="zh"
# ## 汇聚
#
# 汇聚（也叫池化）有窗口而没有权重：它对每个通道分别取窗口中的最大值或均值。

# %%
table = torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, 8], [0, 0, 1, 0], [0, 9, 0, 0]]).requires_grad_()
for pool in (scratch.max_pool2d, scratch.avg_pool2d):
    pooled = pool(table[None, None], 2)[0, 0]
    [gradient] = torch.autograd.grad(pooled.sum(), [table])
    print(pool.__name__, pooled.tolist(), "gradient", gradient.tolist())

# %% [markdown] lang="en"
# The gradient of a mean goes to all of its pixels alike. That of a maximum goes to the winner alone, and the others
# learn nothing from this picture.
#
# Padding of a maximum must not be zeros: below 0 they would win. Both torch and `scratch` take $-\infty$.

# %% [markdown] lang="zh"
# 均值的梯度平均分给窗口里的所有像素。最大值的梯度只流向胜者，其余像素从这张图像里什么也学不到。
#
# 最大汇聚不能用零来填充：当值都小于 0 时，零就会胜出。torch 和 `scratch` 都用 $-\infty$。

# %%
negative = -torch.ones(1, 1, 4, 4)
right = scratch.max_pool2d(negative, 3, padding=1, stride=2)
wrong = scratch.max_pool2d(functional.pad(negative, (1, 1, 1, 1)), 3, stride=2)
print("right", right[0, 0].tolist(), "with zeros", wrong[0, 0].tolist())
assert torch.equal(right, functional.max_pool2d(negative, 3, padding=1, stride=2))

# %% [markdown] lang="en"
# What is pooling good for? It makes maps smaller, and their values depend less on where exactly something stands.
# Here all test pictures move by one pixel. The number says how much their small maps change, against the size of
# their values.

# %% [markdown] lang="zh"
# 汇聚有什么用？它把特征图变小，并使其中的值不那么依赖于东西的确切位置。下面让所有测试图像移动一个像素。打印出的数，
# 是缩小后的特征图的变化量与其数值大小之比。

# %%
pictures = data_set.openers["test"]().images.float() / 255
moved = pictures.roll(1, dims=3)
changes = {}
for name, shrink in {
    "every second pixel": lambda x: x[:, :, ::2, ::2],
    "maximum of 2 x 2": lambda x: scratch.max_pool2d(x, 2),
    "mean of 2 x 2": lambda x: scratch.avg_pool2d(x, 2),
}.items():
    small = shrink(pictures)
    changes[name] = ((shrink(moved) - small).norm() / small.norm()).item()
    print(f"{name:20} {changes[name]:.2f}")
assert changes["mean of 2 x 2"] < changes["maximum of 2 x 2"] < changes["every second pixel"]

# %% [markdown] lang="en"
# ## The receptive field, counted
#
# The receptive field of a value is the part of the picture that can change it. Two numbers are enough to count it
# from layer to layer: the field $r$, and the distance $j$ in px between what two neighbouring values see.
#
# $$r \leftarrow r + (k - 1)\, j \qquad j \leftarrow j\, s$$

# %% [markdown] lang="zh"
# ## 算出感受野
#
# 一个值的感受野，是图像中能够改变它的那一部分。逐层推算只需要两个数：感受野 $r$，以及相邻两个值所看到的区域之间的距离
# $j$（像素）。
#
# $$r \leftarrow r + (k - 1)\, j \qquad j \leftarrow j\, s$$


# %%
def receptive_field(windows: list[Window]) -> tuple[int, int]:
    r, j = 1, 1
    for window in windows:
        r, j = r + (window.kernel - 1) * j, j * window.stride
    return r, j


for name, windows in networks.items():
    fields = [receptive_field(windows[: number + 1])[0] for number in range(len(windows))]
    print(f"{name:15} px behind each window: {fields}")

# %% [markdown] lang="en"
# ## The receptive field, measured
#
# What can change a value has a gradient. So the field is where the gradient of one value is not 0. This is done here
# with LeNet itself, for the value in row 1 and column 1 of the last maps. A maximum lets one pixel through, so that
# many pictures are needed until every pixel was let through once.

# %% [markdown] lang="zh"
# ## 测量感受野
#
# 能够改变一个值的像素，必有梯度。所以感受野就是这个值的梯度不为 0 的地方。这里直接用 LeNet 来做，取最后的特征图中第 1
# 行第 1 列的值。最大汇聚只让一个像素通过，所以需要许多图像，才能让每个像素都通过一次。

# %%
torch.manual_seed(0)
lenet = build_model("lenet", num_classes=10, in_channels=1)
maps = []
lenet.pool.register_forward_hook(lambda layer, inputs, output: maps.append(output))
inputs = pictures[:256].clone().requires_grad_()
lenet(inputs)
maps[-1][:, :, 1, 1].sum().backward()  # [N, 16, 4, 4]
sensitivity = inputs.grad.abs().mean(dim=(0, 1))  # [28, 28]
rows = (sensitivity.sum(dim=1) > 0).nonzero().flatten().tolist()
r, j = receptive_field(networks["lenet"])
print(f"counted {r} px from row {j}, measured {len(rows)} px from row {rows[0]}")
assert rows == list(range(j, j + r))

# %% [markdown] lang="en"
# For deep networks it is clearer to count paths. All weights become 1 and every maximum becomes a sum; then the
# gradient at a pixel is the number of paths from it to the value.

# %% [markdown] lang="zh"
# 对于深的网络，数路径更清楚。把所有权重换成 1，把每个最大值换成求和，那么一个像素上的梯度就是从它到那个值的路径条数。


# %%
def paths(windows: list[Window]) -> torch.Tensor:
    r, j = receptive_field(windows)
    pixels = torch.ones(1, 1, 2 * (r + j), 2 * (r + j), dtype=torch.float64, requires_grad=True)
    values = pixels
    for window in windows:
        ones = torch.ones(1, 1, window.kernel, window.kernel, dtype=torch.float64)
        values = functional.conv2d(values, ones, padding=window.padding, stride=window.stride)
    middle = values.shape[2] // 2
    [gradient] = torch.autograd.grad(values[0, 0, middle, middle], [pixels])
    return gradient[0, 0].sum(dim=0)  # for each column


# %%
for name, windows in networks.items():
    measured, (counted, _) = int((paths(windows) > 0).sum()), receptive_field(windows)
    print(f"{name:15} counted {counted} px, measured {measured} px")
    assert measured == counted

# %% [markdown] lang="en"
# Most paths come from the middle: a pixel at the border of the field has a single one. Luo et al. found the same in
# trained networks and named what really counts the effective receptive field. It is much smaller than the counted
# one.

# %% [markdown] lang="zh"
# 大多数路径来自中间：感受野边缘的像素只有一条。Luo 等人在训练好的网络里发现了同样的现象，
# 并把真正起作用的部分称为有效感受野。它比算出来的小得多。

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
left.imshow(sensitivity.numpy(), cmap="viridis")
left.set_title(f"LeNet: mean gradient, {r} x {r} px", fontsize=9)
for name in ("lenet", "alexnet"):
    counts = paths(networks[name])
    counts = counts[counts > 0]
    right.plot(torch.linspace(-1, 1, len(counts)), counts / counts.max(), label=f"{name}, {len(counts)} px")
right.set(xlabel="place in the field", ylabel="paths, maximum 1")
right.legend(fontsize=8)
plt.show()

# %%
share = {}
for name in ("lenet", "alexnet"):
    counts = paths(networks[name])
    counts = counts[counts > 0]
    middle = counts[len(counts) // 4 : -(len(counts) // 4)]
    share[name] = (middle.sum() / counts.sum()).item()
    print(f"{name}: {share[name]:.0%} of the paths begin in the middle half of the columns")
assert 0.5 < share["lenet"] < share["alexnet"]

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# VGG puts two 3 x 3 convolutions where others have one of 5 x 5. Compare receptive fields, weights between 64
# channels, and the number of activations between.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# VGG 用两个 3 x 3 卷积代替别人的一个 5 x 5 卷积。请比较两者的感受野、64 个通道之间的权重数，以及中间激活函数的个数。

# %% tags=["solution"]
three, five = Window("Conv2d", 3, 1, 1, 28, 28), Window("Conv2d", 5, 2, 1, 28, 28)
weights = {side: 64 * 64 * side**2 for side in (3, 5)}
print("fields", receptive_field([three, three]), receptive_field([five]))
print("weights", 2 * weights[3], weights[5], "- and two activations in place of one")
assert receptive_field([three, three]) == receptive_field([five])
assert 2 * weights[3] < 0.75 * weights[5]

# %% [markdown] lang="en"
# ### Exercise 2
#
# AlexNet's paper says that pictures of 224 px, windows of 11 px and a stride of 4 give 55 places. Which padding makes
# that true? And which side would need none?

# %% [markdown] lang="zh"
# ### 练习 2
#
# AlexNet 的论文说，224 像素的图像、11 像素的窗口、步幅 4 得到 55 个位置。多大的填充才能让这句话成立？
# 边长为多少时不需要填充？

# %% tags=["solution"]
paddings = [p for p in range(6) if scratch.output_side(224, 11, padding=p, stride=4) == 55]
sides = [side for side in range(200, 240) if (side - 11) / 4 + 1 == 55]
print("paddings", paddings, "sides", sides)
assert paddings == [2, 3]
assert sides == [227]

# %% [markdown] lang="en"
# ### Exercise 3
#
# Average pooling is a convolution. Write it as one for three channels: what are its weights, and how many of them are
# 0?

# %% [markdown] lang="zh"
# ### 练习 3
#
# 平均汇聚就是一种卷积。请对三个通道把它写成卷积：权重是什么，其中有多少是 0？

# %% tags=["solution"]
maps = torch.randn(2, 3, 8, 8, generator=generator)
weights = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4  # each channel sees itself alone
print("zeros:", int((weights == 0).sum()), "of", weights.numel())
assert torch.allclose(scratch.conv2d(maps, weights, stride=2), scratch.avg_pool2d(maps, 2), atol=1e-6)
