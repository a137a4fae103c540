# %% [markdown] lang="en"
# # 05 AlexNet and VGG
#
# Afterwards you can
#
# - tell the shapes of AlexNet and VGG, and where their parameters are,
# - say what two windows of 3 px have over one of 5 px, and what they need for it,
# - use dropout, and say what it does in training and in evaluation,
# - look at the kernels of a first layer before and after training,
# - find the defect that takes the activations out of a VGG block.
#
# Papers: Krizhevsky, Sutskever and Hinton 2012, *ImageNet Classification with Deep Convolutional Neural Networks*;
# Simonyan and Zisserman 2014, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, arXiv:1409.1556.
# Time: about 45 minutes with the exercises.

# %% [markdown] lang="zh"
# # 05 AlexNet 与 VGG
#
# 学完本课，你将能够：
#
# - 说出 AlexNet 和 VGG 各层的形状，以及参数都在哪里，
# - 说明两个 3 像素的窗口比一个 5 像素的窗口好在哪里，又需要什么条件，
# - 使用暂退法（dropout），并说出它在训练和评估时各做什么，
# - 查看第一层的卷积核在训练前后的样子，
# - 找出让 VGG 块丢掉激活函数的那个缺陷。
#
# 论文：Krizhevsky、Sutskever 和 Hinton 2012，*ImageNet Classification with Deep Convolutional Neural
# Networks*；Simonyan 和 Zisserman 2014，*Very Deep Convolutional Networks for Large-Scale Image
# Recognition*，arXiv:1409.1556。用时：连同练习约 45 分钟。

# %%
import os
from itertools import islice, product

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

# %%
from candid import Recipe, build_model, scratch
from candid.data.catalog import open_data_set
from candid.data.loading import EvaluationBatches, TrainingBatches, TrainingData, open_training_data
from candid.models import find_variant
from candid.models.alexnet import AlexNet, AlexNetConfig
from candid.models.blocks import draw_he_fan_out
from candid.models.summary import Layer, Summary, summarize

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")

# %% [markdown] lang="en"
# ## The shapes
#
# AlexNet has five convolutions and three linear layers. Its first convolution has large windows and large steps. VGG
# has one kind of convolution, 3 x 3 with a padding of 1, and one kind of pooling, 2 x 2. Some convolutions and a
# pooling are a block: within it the side stays, behind it the side is half. VGG-11 has blocks of 1, 1, 2, 2 and 2
# convolutions; three linear layers make it eleven. Here are the forms for grey pictures of 224 px and ten classes.

# %% [markdown] lang="zh"
# ## 形状
#
# AlexNet 有五个卷积层和三个线性层，第一个卷积层窗口大、步幅也大。VGG 只有一种卷积，即填充为 1 的 3 x 3 卷积，
# 也只有一种汇聚，即 2 x 2。若干个卷积加一次汇聚构成一个块：块内边长不变，出块后边长减半。VGG-11 的各块有
# 1、1、2、2、2 个卷积，加上三个线性层，共十一层。这里用的是 224 像素的灰度图像、十个类别的形式。


# %%
def print_layers(summary: Summary) -> None:
    """All layers but activations and dropout, which keep the shape and have no parameters."""
    for layer in summary.layers:
        if layer.kind not in ("relu", "dropout"):
            shape = " x ".join(map(str, layer.output))
            print(f"{layer.kind:<22}{shape:<16}{layer.parameters:12,} parameters")


# %%
poolings = {}
for name in ("alexnet-notes", "vgg11-notes"):
    summary = summarize(name)
    print(f"{name}, {summary.depth} layers")
    print_layers(summary)
    poolings[name] = [layer.output for layer in summary.layers if layer.kind.startswith("max pool")]
    first_linear = next(layer for layer in summary.layers if layer.kind == "linear")
    assert first_linear.parameters > 0.5 * summary.parameters
assert poolings["alexnet-notes"] == [(96, 26, 26), (256, 12, 12), (256, 5, 5)]
assert poolings["vgg11-notes"] == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]

# %% [markdown] lang="en"
# ## Where the parameters are
#
# A linear layer has a weight for each pair of an input and an output. The first one reads all values of the last
# maps: in both networks it has more than half of all parameters. A convolution uses the same few weights at every
# place, so that it has few parameters and much work. Beside them are NiN and GoogLeNet, which the next lesson is
# about: they take the mean of each map, and have a small linear layer behind it, or none.

# %% [markdown] lang="zh"
# ## 参数在哪里
#
# 线性层对每一对输入和输出都有一个权重。第一个线性层读取最后的特征图的所有值：在这两个网络里，它的参数都超过总数的一半。
# 卷积在每个位置都使用同样的几个权重，所以参数少而运算多。下面与下一课的 NiN 和 GoogLeNet 放在一起比较：
# 它们对每张特征图取平均，之后只有一个小的线性层，或者没有线性层。


# %%
def share_of_linear_layers(layers: tuple[Layer, ...], what: str) -> float:
    linear = sum(getattr(layer, what) for layer in layers if layer.kind == "linear")
    return linear / sum(getattr(layer, what) for layer in layers)


names = ("alexnet-notes", "vgg11-notes", "vgg16", "nin-notes", "googlenet-notes")
networks = [summarize(name).layers for name in names]
shares = {what: [share_of_linear_layers(one, what) for one in networks] for what in ("parameters", "multiply_adds")}
for name, of_parameters, of_work in zip(names, *shares.values(), strict=True):
    print(f"{name:<17}linear layers: {of_parameters:6.1%} of parameters, {of_work:6.1%} of multiply-adds")
    assert (of_parameters > 0.85) == (name in names[:3])
    assert of_work < 0.05

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.4), sharey=True, layout="constrained")
for axis, (what, of_linear) in zip(axes, shares.items(), strict=True):
    axis.barh(names, [1 - share for share in of_linear], label="convolutions")
    axis.barh(names, of_linear, left=[1 - share for share in of_linear], label="linear layers")
    axis.set(title=what.replace("_", "-"), xlim=(0, 1))
axes[0].invert_yaxis()
figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside lower center", fontsize=8)
plt.show()

# %% [markdown] lang="en"
# ## Two windows of 3 px in place of one of 5 px
#
# Two 3 x 3 convolutions in a row see 5 x 5 px. Between $C$ channels they have $18 C^2$ weights, and a 5 x 5
# convolution has $25 C^2$. For 7 x 7 px three of them do, and the paper says that a single convolution has 81 % more
# weights. The field is measured here by a gradient: what can change a value has one.

# %% [markdown] lang="zh"
# ## 用两个 3 像素的窗口代替一个 5 像素的窗口
#
# 两个相连的 3 x 3 卷积能看到 5 x 5 像素。通道数为 $C$ 时，它们共有 $18 C^2$ 个权重，而一个 5 x 5 卷积有 $25 C^2$ 个。
# 要看到 7 x 7 像素，三个就够；论文说单个卷积的权重要多 81 %。这里用梯度来测量感受野：能够改变一个值的像素，必有梯度。


# %%
def field(sides: list[int]) -> int:
    """Side in px of what the value in the middle sees through convolutions of these sides."""
    pixels = values = torch.zeros(1, 1, 31, 31, requires_grad=True)
    for side in sides:
        values = scratch.conv2d(values, torch.ones(1, 1, side, side), padding=side // 2)
    [gradient] = torch.autograd.grad(values[0, 0, 15, 15], [pixels])
    return int((gradient[0, 0].sum(dim=0) > 0).sum())


for single, number in ((5, 2), (7, 3)):
    fields = field([single]), field([3] * number)
    more = single**2 / (number * 3**2) - 1  # the channels cancel out
    print(f"one window of {single} px sees {fields[0]} px, {number} of 3 px see {fields[1]}; {more:.0%} more weights")
    assert fields == (single, single)
assert round(100 * more) == 81

# %% [markdown] lang="en"
# But two convolutions in a row are linear, one as the other, and so is what they do together: it is one 5 x 5
# convolution. Its kernels can be calculated. A weight of the first that looks $a$ px to the right and one of the
# second that looks $b$ px to the right make one that looks $a + b$ px to the right.

# %% [markdown] lang="zh"
# 但是两个相连的卷积各自都是线性的，合起来也是线性的：它们就是一个 5 x 5 卷积，而且它的卷积核可以算出来。
# 第一个卷积中向右看 $a$ 像素的权重，与第二个卷积中向右看 $b$ 像素的权重，合成一个向右看 $a + b$ 像素的权重。


# %%
def compose(first: Tensor, second: Tensor) -> Tensor:
    """Kernels [E, C, ...] that do in one step what first [D, C, h, h] and then second [E, D, k, k] do."""
    side, places = first.shape[-1], second.shape[-1]
    one = first.new_zeros(second.shape[0], first.shape[1], side + places - 1, side + places - 1)
    for i, j in product(range(places), repeat=2):
        one[:, :, i : i + side, j : j + side] += torch.einsum("ed,dchw->echw", second[:, :, i, j], first)
    return one


generator = torch.Generator().manual_seed(0)
images, first, second = (
    torch.randn(shape, generator=generator, dtype=torch.float64)
    for shape in ((2, 3, 12, 12), (8, 3, 3, 3), (4, 8, 3, 3))
)

# %%
kernels = compose(first, second)
in_two, in_one = scratch.conv2d(scratch.conv2d(images, first), second), scratch.conv2d(images, kernels)
print(f"kernels {tuple(kernels.shape)}; largest difference {(in_two - in_one).abs().max():.0e}")
assert torch.allclose(in_two, in_one)
with_relu = scratch.conv2d(scratch.conv2d(images, first).relu(), second)
print(f"with a ReLU between them {(with_relu - in_one).abs().max():.1f}")
assert not torch.allclose(with_relu, in_one, atol=1)

# %% [markdown] lang="en"
# So it is the activation between them that makes two layers out of two convolutions. Without it they save weights,
# and can do nothing that one 5 x 5 convolution could not.
#
# ## Dropout
#
# AlexNet and VGG have dropout behind their hidden linear layers, where most of their parameters are. In training each
# value is set to 0 with probability $p$, and the others are divided by $1 - p$, so that the mean of what the next
# layer reads stays. In evaluation nothing happens. Here one input passes dropout two thousand times.

# %% [markdown] lang="zh"
# 所以，是中间的激活函数使两个卷积成为两层。没有它，两个卷积只是省了权重，能做的事一个 5 x 5 卷积也都能做。
#
# ## 暂退法
#
# AlexNet 和 VGG 在隐藏的线性层之后使用暂退法（dropout），大部分参数正在那里。训练时，每个值以概率 $p$ 置为 0，
# 其余的除以 $1 - p$，使下一层读到的值的均值保持不变。评估时什么也不做。下面让同一个输入通过暂退法两千次。

# %%
values, weights = torch.rand(256, generator=generator), torch.randn(256, generator=generator) / 16
dropped = torch.stack([scratch.dropout(values, 0.5, generator) for _ in range(2000)])
read = dropped @ weights  # what a unit of the next layer reads, each time
print(f"{(dropped == 0).double().mean():.1%} of the values are 0")
print(f"without dropout {values @ weights:.3f}; with it {read.mean():.3f} on average, spread {read.std():.3f}")
assert abs(read.mean() - values @ weights) < 4 * read.std() / len(read) ** 0.5
assert torch.equal(nn.Dropout(0.5).eval()(values), values)

# %% [markdown] lang="en"
# ## A narrow AlexNet
#
# In full size AlexNet takes too long here. Ours has a quarter of the maps, hidden layers of 256, and pictures of
# 64 px. A fifth of the training split is held out for validation.

# %% [markdown] lang="zh"
# ## 窄的 AlexNet
#
# 完整大小的 AlexNet 在这里太慢。我们的网络只有四分之一的特征图，隐藏层宽 256，图像边长 64 像素。
# 训练集的五分之一留作验证集。


# %%
def open_data(side: int) -> tuple[TrainingData, TrainingBatches]:
    """Pictures of `side` px."""
    settings = {"data.name": "fashion-mnist-mini", "data.image_size": side, "data.channels": 1, "data.validation": 0.2}
    recipe = Recipe().replace(settings | {"training.batch_size": 64})
    data = open_training_data(open_data_set("fashion-mnist-mini"), recipe)
    return data, TrainingBatches(data, recipe, num_classes=10, device=CPU)


# %%
def train(network: nn.Module, batches: TrainingBatches, epochs: int) -> list[float]:
    """The loss of each step."""
    optimizer, losses = torch.optim.Adam(network.train().parameters(), lr=1e-3), []
    for epoch in range(1 if QUICK else epochs):
        for batch in islice(batches.epoch(epoch), 3 if QUICK else None):
            loss = cross_entropy(network(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


# %%
@torch.no_grad()
def accuracy(network: nn.Module, data: TrainingData) -> float:
    """Of the validation pictures."""
    network.eval()
    batches = EvaluationBatches(data.validation, data.preprocessing, CPU)
    return torch.cat([network(inputs).argmax(dim=1) == labels for inputs, labels in batches]).double().mean().item()


# %%
def build_alexnet() -> AlexNet:
    torch.manual_seed(0)
    config = AlexNetConfig((24, 64, 96, 96, 64), average_side=None, linear_width=256, image_size=64)
    network = AlexNet(config, num_classes=10, in_channels=1)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers[1:]:  # the paper's draw, N(0, 0.01), is one for wide layers
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


# %%
data, batches = open_data(side=64)
network = build_alexnet()
before = network.features[0].weight.detach().clone()  # [24, 1, 11, 11]
losses = train(network, batches, epochs=6)
after = network.features[0].weight.detach()
print(f"loss {losses[0]:.2f} at first, {sum(losses[-20:]) / len(losses[-20:]):.2f} in the last steps")
right = accuracy(network, data)
print(f"{right:.3f} of the validation pictures right")
assert QUICK or right > 0.6

# %% [markdown] lang="en"
# ## The kernels of the first layer
#
# The first layer's kernels can be looked at as pictures. Those of the paper, after a million pictures, show edges and
# spots of colour. Ours have seen a few thousand grey ones. But they are no longer the noise that they began as:
# weights have become more like those beside them.

# %% [markdown] lang="zh"
# ## 第一层的卷积核
#
# 第一层的卷积核可以当作图像来看。论文里的卷积核看过一百多万张图像，呈现出边缘和色块。我们的只看过几千张灰度图像。
# 但它们已不再是开始时的噪声：权重变得与旁边的权重更相像了。


# %%
def mosaic(kernels: Tensor, columns: int = 12) -> Tensor:
    """Kernels [D, 1, h, w] in rows, each divided by its largest size, with an empty px around it."""
    scaled = kernels[:, 0] / kernels.abs().amax(dim=(2, 3))[:, :, None].clamp(min=1e-12)
    framed = pad(scaled, (1, 1, 1, 1), value=torch.nan)
    return torch.cat([torch.cat(list(row), dim=1) for row in framed.split(columns)])


def likeness(kernels: Tensor) -> float:
    """The correlation of weights with those to their right."""
    return torch.corrcoef(torch.stack((kernels[..., :-1].flatten(), kernels[..., 1:].flatten())))[0, 1].item()


print(f"correlation of neighbours: {likeness(before):.2f} before, {likeness(after):.2f} after")
assert QUICK or likeness(after) > likeness(before)

# %%
figure, axes = plt.subplots(2, 1, figsize=(6.4, 2.7), layout="constrained")
for axis, (title, kernels) in zip(axes, {"before training": before, "after": after}.items(), strict=True):
    axis.imshow(mosaic(kernels).numpy(), cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# ## Defect: the first convolution of a block without an activation
#
# The notes' VGG block puts a ReLU behind the second convolution and those after it. The first one has none, and so a
# block of one convolution has none at all. Blocks in the notes' form and in the paper's:

# %% [markdown] lang="zh"
# ## 缺陷：块中第一个卷积之后没有激活函数
#
# 笔记里的 VGG 块从第二个卷积起才加 ReLU。第一个卷积之后没有，所以只有一个卷积的块根本没有激活函数。
# 下面是笔记形式和论文形式的块：


# %%
def stage(in_channels: int, width: int, num_convolutions: int, has_defect: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for index in range(num_convolutions):
        layers.append(nn.Conv2d(in_channels, width, kernel_size=3, padding=1))
        if index > 0 or not has_defect:
            layers.append(nn.ReLU())
        in_channels = width
    return [*layers, nn.MaxPool2d(2)]


# %%
WIDTHS, COLUMN_A = (8, 16, 32, 64, 64), (1, 1, 2, 2, 2)  # VGG-11 with an eighth of its widths


def build_vgg(has_defect: bool, seed: int = 0) -> nn.Sequential:
    """For pictures of 32 px, with one hidden linear layer."""
    torch.manual_seed(seed)
    sizes = zip((1, *WIDTHS[:-1]), WIDTHS, COLUMN_A, strict=True)
    features = [layer for size in sizes for layer in stage(*size, has_defect)]
    head = nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    network = nn.Sequential(nn.Sequential(*features), *head)
    draw_he_fan_out(network)
    return network


# %% [markdown] lang="en"
# The layers in their order. With the defect the first ReLU comes behind the fourth convolution; five of eight are
# missing.

# %% [markdown] lang="zh"
# 按顺序列出各层。有缺陷时，第一个 ReLU 要到第四个卷积之后才出现；八个之中少了五个。

# %%
kinds = {}
for has_defect in (True, False):
    kinds[has_defect] = [type(layer).__name__ for layer in build_vgg(has_defect)[0]]
    print(f"{kinds[has_defect].count('ReLU')} ReLUs:", " ".join(kinds[has_defect]).replace("2d", ""))
until_relu = kinds[True][: kinds[True].index("ReLU")]
assert until_relu.count("Conv2d") == 4
assert [kinds[has_defect].count("ReLU") for has_defect in (True, False)] == [3, 8]
zoo = build_model("vgg11-notes-small", num_classes=10, in_channels=1)
assert kinds[False] == [type(layer).__name__ for layer in zoo.features]

# %% [markdown] lang="en"
# A function with $f(a + b) = f(a) + f(b) - f(0)$ is linear up to its bias. A block of one convolution with the defect
# is, up to its pooling; with the ReLU it is not. In blocks of two, the first convolution and the second are one of
# 5 x 5 px, as above.

# %% [markdown] lang="zh"
# 满足 $f(a + b) = f(a) + f(b) - f(0)$ 的函数，除偏置外是线性的。有缺陷的单卷积块在汇聚之前正是这样；有 ReLU 时则不是。
# 在有两个卷积的块里，第一个卷积和第二个卷积合成一个 5 x 5 卷积，如上所述。

# %%
torch.manual_seed(0)
a, b = torch.randn(2, 4, 1, 12, 12)
for has_defect in (True, False):
    f = nn.Sequential(*stage(1, 8, 1, has_defect)[:-1])  # without the pooling
    with torch.no_grad():
        gap = (f(a + b) - (f(a) + f(b) - f(torch.zeros_like(a)))).abs().max().item()
    print(f"{'with the defect' if has_defect else 'with its ReLU':<16} largest difference {gap:.1e}")
    assert (gap < 1e-5) == has_defect

# %% [markdown] lang="en"
# ## What the defect does in training
#
# Both narrow networks learn from the same batches, each from several draws of the weights. The spread between the
# draws is the measure: a difference between the two networks that is smaller says nothing.

# %% [markdown] lang="zh"
# ## 缺陷对训练的影响
#
# 两个窄网络从同样的批量中学习，各从几组随机抽取的初始权重开始。各组之间的离散程度就是衡量的标准：
# 两个网络的差别若小于它，就什么也说明不了。

# %%
SEEDS, NAMES = (0,) if QUICK else (0, 1, 2), {False: "ReLU everywhere", True: "with the defect"}
data, batches = open_data(side=32)
curves: dict[str, list[list[float]]] = {name: [] for name in NAMES.values()}
accuracies: dict[str, list[float]] = {name: [] for name in NAMES.values()}
for (has_defect, name), seed in product(NAMES.items(), SEEDS):
    network = build_vgg(has_defect, seed)
    curves[name].append(train(network, batches, epochs=4))
    accuracies[name].append(accuracy(network, data))

# %%
for name in curves:
    last = [sum(losses[-40:]) / len(losses[-40:]) for losses in curves[name]]
    print(f"{name:<16} loss {' '.join(f'{loss:.3f}' for loss in last)}, accuracy", end=" ")
    print(" ".join(f"{share:.3f}" for share in accuracies[name]))
    assert QUICK or min(accuracies[name]) > 0.6

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained", width_ratios=(2, 1))
for place, name in enumerate(curves):
    for number, losses in enumerate(curves[name]):
        means = torch.tensor(losses).unfold(0, min(20, len(losses)), 1).mean(dim=1)
        left.plot(means, color=f"C{place}", linewidth=0.8, label=None if number else name)
    right.plot([place] * len(SEEDS), accuracies[name], "o", color=f"C{place}", alpha=0.6)
left.set(xlabel="step", ylabel="loss, mean of 20 steps")
right.set(xticks=[0, 1], xticklabels=["ReLU", "defect"], xlim=(-0.5, 1.5), ylabel="validation accuracy")
left.legend()
plt.show()

# %% [markdown] lang="en"
# The network with the defect learns too, and nothing fails. Whoever looks at its curve alone cannot know that
# activations are missing. What finds such a defect is to list the layers and to count them.

# %% [markdown] lang="zh"
# 有缺陷的网络也在学习，程序也不出错。只看它自己的曲线，无从知道少了激活函数。
# 要发现这样的缺陷，就得把各层列出来数一数。

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# With the defect, the two convolutions of the third block are one of 5 x 5 px. Calculate its kernels and its bias.
# Where does it give something else than the two, and why?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 有缺陷时，第三个块的两个卷积就是一个 5 x 5 卷积。请算出它的卷积核和偏置。它在哪里与那两个卷积的结果不同，为什么？

# %% tags=["solution"]
convolutions = [layer for layer in build_vgg(has_defect=True).double()[0] if isinstance(layer, nn.Conv2d)]
first, second = convolutions[2:4]
maps = torch.randn(4, 16, 8, 8, generator=generator, dtype=torch.float64)
with torch.no_grad():
    bias = second.bias + second.weight.sum(dim=(2, 3)) @ first.bias
    in_one = scratch.conv2d(maps, compose(first.weight, second.weight), bias, padding=2)
    difference = (second(first(maps)) - in_one).abs()
inside = difference[:, :, 1:-1, 1:-1]  # at the border, zeros take the place of what the first would have made there
print(f"largest difference inside {inside.max():.0e}, with the border {difference.max():.1f}")
assert inside.max() < 1e-9 < difference.max()

# %% [markdown] lang="en"
# ### Exercise 2
#
# How many ReLUs behind convolutions do VGG-13, VGG-16 and VGG-19 have, and how many with the defect?

# %% [markdown] lang="zh"
# ### 练习 2
#
# VGG-13、VGG-16 和 VGG-19 的卷积之后各有多少个 ReLU？有缺陷时又各有多少个？

# %% tags=["solution"]
for name in ("vgg13", "vgg16", "vgg19"):
    with torch.device("meta"):  # shapes without memory
        right = sum(isinstance(layer, nn.ReLU) for layer in build_model(name, num_classes=1000).features)
    column = find_variant(name).config.convolutions_per_stage
    left = [isinstance(layer, nn.ReLU) for number in column for layer in stage(1, 1, number, has_defect=True)]
    print(f"{name}: {right}, with the defect {sum(left)}")
    assert sum(left) == right - len(column)  # each block loses one
