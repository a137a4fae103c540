# %% [markdown] lang="en"
# # 09 Dense connections
#
# Afterwards you can say what a dense block computes and why it concatenates, count its channels and its parameters by
# hand, and explain the growth rate, the bottleneck and the compression of a DenseNet.
#
# Paper: Huang, Liu, van der Maaten and Weinberger, 2017, arXiv:1608.06993.
#
# Time: about 40 minutes with the exercises.

# %% [markdown] lang="zh"
# # 09 稠密连接
#
# 学完本课，你能说清稠密块计算什么、为什么用拼接，能手工数出它的通道数和参数量，
# 还能解释 DenseNet 的增长率、瓶颈和压缩。
#
# 论文：Huang、Liu、van der Maaten 和 Weinberger，2017，arXiv:1608.06993。
#
# 用时：连同练习约 40 分钟。

# %%
import os
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# %%
from candid import Evaluation, Recipe, build_model, scratch
from candid.data.catalog import open_data_set
from candid.data.examples import Examples
from candid.data.loading import EvaluationBatches, TrainingBatches, open_training_data
from candid.evaluation import evaluate_model
from candid.models import count_parameters
from candid.models.densenet import VARIANTS, BottleneckLayer, DenseBlock, DenseNet, DenseNetConfig
from candid.paper_tables import DENSENET_TABLE_2

QUICK = os.environ.get("LESSONS") == "quick"

# %% [markdown] lang="en"
# ## Adding and concatenating
#
# A residual block adds what it makes to what it reads. A sum has as many channels as before, and nobody can tell
# afterwards what was added. A dense layer puts what it makes behind what it reads: the maps are concatenated. Every
# older map stays as it was, and every later layer can read it.

# %% [markdown] lang="zh"
# ## 相加与拼接
#
# 残差块把算出的结果加到输入上。相加之后通道数不变，加进去的是什么也就再也分不出来了。
# 稠密层把新的特征图放在输入的后面，也就是拼接。先前的每张特征图都原样保留，后面的每一层都能读到它。

# %%
torch.manual_seed(0)
x = torch.randn(1, 16, 8, 8)
new = nn.Conv2d(16, 12, kernel_size=3, padding=1)(x)
together = torch.cat((x, new), dim=1)
print(f"read {tuple(x.shape)}, made {tuple(new.shape)}, handed on {tuple(together.shape)}")
assert torch.equal(together[:, :16], x)  # what was there before is there still

# %% [markdown] lang="en"
# ## A dense block by hand
#
# A layer of a dense block does three things: batch normalisation, ReLU, and a 3x3 convolution to $k$ new maps. $k$ is
# the growth rate. Here they are, made of the operations of `candid.scratch`. Layer $i$ reads $C + i k$ maps, where
# $C$ is the number of maps that enter the block and the first layer has $i = 0$.

# %% [markdown] lang="zh"
# ## 手写一个稠密块
#
# 稠密块的每一层做三件事：批量归一化、ReLU、再用 3x3 卷积得到 $k$ 张新的特征图。$k$ 叫作增长率。
# 下面用 `candid.scratch` 里的运算把它写出来。第 $i$ 层读 $C + i k$ 张特征图，其中 $C$ 是进入稠密块的特征图数，
# 第一层的编号是 $i = 0$。


# %%
class Layer(nn.Module):
    """k new maps from all maps before it."""

    def __init__(self, in_channels: int, k: int) -> None:
        super().__init__()
        self.norm = scratch.BatchNorm(in_channels)
        self.kernels = nn.Parameter(torch.randn(k, in_channels, 3, 3) / (3 * in_channels**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return scratch.conv2d(self.norm(x).relu(), self.kernels, padding=1)


# %%
layers = nn.ModuleList(Layer(16 + 12 * index, 12) for index in range(4)).double()
entering = torch.randn(2, 16, 8, 8, dtype=torch.float64)
maps = entering
for index, layer in enumerate(layers):
    new = layer(maps)
    print(f"layer {index} reads {maps.shape[1]} maps and makes {new.shape[1]}")
    maps = torch.cat((maps, new), dim=1)
print(f"the block hands on {maps.shape[1]}")

# %% [markdown] lang="en"
# candid's `DenseBlock` computes the same. It gets our kernels, and the two results are compared.

# %% [markdown] lang="zh"
# candid 的 `DenseBlock` 算的是同一件事。把我们的卷积核交给它，再比较两个结果。

# %%
block = DenseBlock(DenseNetConfig(growth_rate=12, bottleneck=False), num_layers=4, in_channels=16).double()
with torch.no_grad():
    for ours, theirs in zip(layers, block.layers, strict=True):
        theirs.conv1.weight.copy_(ours.kernels)
difference = (block(entering) - maps).abs().max().item()
print(f"largest difference: {difference:.1e}")
assert difference < 1e-10  # float64 leaves only rounding

# %% [markdown] lang="en"
# ## Counting channels
#
# A block of $n$ layers turns $C$ channels into $C + n k$. Between two blocks stands a transition: batch
# normalisation, ReLU, a 1x1 convolution that keeps a share $\theta$ of the channels, and a 2x2 average that halves
# the side. `densenet-notes` is a network of four blocks of four layers, with $k = 32$ and $\theta = 0.5$.

# %% [markdown] lang="zh"
# ## 计算通道数
#
# $n$ 层的稠密块把 $C$ 个通道变成 $C + n k$ 个。两个稠密块之间是过渡层：批量归一化、ReLU、一个按比例 $\theta$
# 保留通道的 1x1 卷积，以及一个把边长减半的 2x2 平均汇聚。`densenet-notes` 是一个有四个稠密块的网络，
# 每块四层，$k = 32$，$\theta = 0.5$。


# %%
def count_channels(config: DenseNetConfig) -> list[int]:
    """Channels behind the stem, and then behind each block and each transition."""
    channels = [config.stem_channels]
    for index, num_layers in enumerate(config.layers_per_block):
        if index > 0:
            channels.append(int(config.compression * channels[-1]))
        channels.append(channels[-1] + num_layers * config.growth_rate)
    return channels


by_hand = count_channels(VARIANTS["densenet-notes"])
print(" -> ".join(map(str, by_hand)))

# %% [markdown] lang="en"
# The network itself says the same. A forward hook on each part notes the shape of what the part gives.

# %% [markdown] lang="zh"
# 网络自己的回答也一样。给每个部分挂上一个前向钩子，记下它输出的形状。

# %%
network = build_model("densenet-notes", num_classes=10, in_channels=1).eval()
shapes: list[tuple[int, ...]] = []
for part in (network.stem, *network.blocks, *network.transitions):
    part.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
with torch.no_grad():
    network(torch.zeros(1, 1, 96, 96))
names = ["stem", *[f"{kind} {n}" for n in (1, 2, 3, 4) for kind in ("block", "transition")]][:-1]
for name, shape in zip(names, shapes, strict=True):
    print(f"{name:<13}{shape[0]:4} channels of {shape[1]} x {shape[2]} px")
assert [shape[0] for shape in shapes] == by_hand

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
colors = ["tab:gray", *["tab:blue", "tab:orange"] * 4][: len(names)]
axes.bar(names, by_hand, color=colors)
for place, channels in enumerate(by_hand):
    axes.text(place, channels + 4, channels, ha="center")
axes.set(ylabel="channels", ylim=(0, 280), title="densenet-notes")
axes.tick_params(axis="x", rotation=45)
plt.show()

# %% [markdown] lang="en"
# ## Bottleneck
#
# The last layers of a block read many maps and make only $k$. With $m$ maps to read, the 3x3 convolution has $9 m k$
# weights. DenseNet-B first brings the maps down to $4 k$ by a 1x1 convolution, which takes $4 m k$ weights, and then
# needs $36 k^2$ for the 3x3 convolution. That is less as soon as $m$ is larger than $7.2 k$.

# %% [markdown] lang="zh"
# ## 瓶颈
#
# 稠密块靠后的层要读很多特征图，却只产生 $k$ 张。要读 $m$ 张特征图时，3x3 卷积有 $9 m k$ 个权重。DenseNet-B 先用 1x1
# 卷积把特征图减到 $4 k$ 张，这需要 $4 m k$ 个权重，随后的 3x3 卷积再需要 $36 k^2$ 个。只要 $m$ 大于 $7.2 k$，
# 这样就更省。

# %%
k = 12
config, read = DenseNetConfig(growth_rate=k), range(24, 24 + 16 * k + 1, k)  # a block of DenseNet-BC, L = 100
without = [9 * m * k for m in read]
with_bottleneck = [4 * m * k + 36 * k**2 for m in read]
layer = BottleneckLayer(config, in_channels=read[-1])
assert layer.conv1.weight.numel() + layer.conv2.weight.numel() == with_bottleneck[-1]
print(f"The bottleneck saves weights from {7.2 * k:.0f} maps on.")

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
axes.plot(read, without, "o-", label="3x3")
axes.plot(read, with_bottleneck, "o-", label="1x1 to 4k, then 3x3")
axes.axvline(7.2 * k, color="tab:gray", linestyle=":")
axes.set(xlabel="maps that the layer reads", ylabel="weights", ylim=(0, None), title="a layer, k = 12")
axes.legend()
plt.show()

# %% [markdown] lang="en"
# ## Compression
#
# Without compression ($\theta = 1$) every block begins with all maps of all blocks before it. DenseNet-C keeps half
# of them at each transition. The effect is large, because every layer of all later blocks reads fewer maps.

# %% [markdown] lang="zh"
# ## 压缩
#
# 不压缩时（$\theta = 1$），每个稠密块一开始就带着前面所有块的全部特征图。DenseNet-C 在每个过渡层只保留一半。
# 效果很明显，因为后面每个块的每一层要读的特征图都变少了。

# %%
compressed = VARIANTS["densenet-bc-100-12"]
for theta in (1.0, 0.5):
    config = replace(compressed, compression=theta)
    num_weights = sum(parameter.numel() for parameter in DenseNet(config, num_classes=10).parameters())
    print(f"theta {theta}: channels {count_channels(config)}, {num_weights:,} parameters")

# %% [markdown] lang="en"
# ## The parameters of the paper's networks
#
# Now a whole network can be counted by hand. Convolutions have no bias. A normalisation has two numbers for each
# channel, the linear layer at the end has a bias. For images of 32 px the stem is one 3x3 convolution. The table puts
# our count beside candid's network and beside the number in Table 2 of the paper, in millions.

# %% [markdown] lang="zh"
# ## 论文中各网络的参数量
#
# 现在可以手工数出整个网络的参数量了。卷积没有偏置；每个归一化层每个通道有两个数；最后的线性层有偏置。输入为 32
# 像素的图像时，起始层只是一个 3x3 卷积。下面的表把我们数出的结果、candid 网络的结果和论文表 2
# 中以百万为单位的数字放在一起。


# %%
def count_by_hand(config: DenseNetConfig, num_classes: int) -> int:
    """Parameters of a DenseNet for RGB images of 32 px."""
    k, m = config.growth_rate, config.stem_channels
    total = 3 * 9 * m
    for index, num_layers in enumerate(config.layers_per_block):
        if index > 0:  # a transition
            kept = int(config.compression * m)
            total, m = total + 2 * m + m * kept, kept
        for _ in range(num_layers):
            convolutions = 4 * m * k + 2 * 4 * k + 36 * k**2 if config.bottleneck else 9 * m * k
            total, m = total + 2 * m + convolutions, m + k
    return total + 2 * m + (m + 1) * num_classes


# %%
print(f"{'network':<20}{'by hand':>12}{'candid':>12}{'paper':>9}")
for row in DENSENET_TABLE_2:
    if row.model.startswith("densenet"):
        counted, built = count_by_hand(VARIANTS[row.model], 10), count_parameters(row.model, 10)
        print(f"{row.model:<20}{counted:12,}{built:12,}{row.millions:7.1f} M")
        assert counted == built
        assert round(counted / 1e6, 1) == row.millions

# %% [markdown] lang="en"
# The command `candid models --paper densenet` prints the whole table with its errors and draws the paper's figure 4.
#
# ## A dense and a plain network of equal size
#
# Does it help? We train a small DenseNet and a plain network on `fashion-mnist-mini`. The plain one has as many
# convolutions, with normalisation and ReLU too, and all of its layers have the width that gives it about as many
# parameters. Both see the same pictures in the same order, at half their side, which saves time.

# %% [markdown] lang="zh"
# 命令 `candid models --paper densenet` 会打印整张表，包括错误率，并画出论文的图 4。
#
# ## 同样大小的稠密网络与普通网络
#
# 这样做有用吗？我们在 `fashion-mnist-mini` 上训练一个小的 DenseNet 和一个普通网络。普通网络的卷积层数相同，
# 也有归一化和 ReLU，各层的宽度取得让参数量大致相等。两个网络按同样的顺序看同样的图像；为了省时间，图像的边长减半。


# %%
def build_plain(width: int) -> nn.Sequential:
    """Eleven convolutions and a head as in the DenseNet, each reading only the one before it."""
    parts: list[nn.Module] = [nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False)]
    for index in range(1, 12):
        if index in (4, 8):  # where the DenseNet has transitions
            parts.append(nn.AvgPool2d(2))
        parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)]
    parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*parts)


# %%
SIDE = 14  # px; the pictures have 28, which takes four times as long
SMALL = DenseNetConfig(8, (3, 3, 3), stem_channels=16, stem="small", image_size=SIDE, bottleneck=False)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


target = count(DenseNet(SMALL, num_classes=10, in_channels=1))
width = min(range(4, 64), key=lambda width: abs(count(build_plain(width)) - target))
print(f"DenseNet {target:,} parameters; plain, {width} channels wide, {count(build_plain(width)):,}")
assert abs(count(build_plain(width)) / target - 1) < 0.05

# %% [markdown] lang="en"
# The data come from candid: a tenth of the training pictures is held out for validation.

# %% [markdown] lang="zh"
# 数据由 candid 提供：训练图像的十分之一留作验证集。

# %%
recipe = Recipe().replace({"data.name": "fashion-mnist-mini", "data.image_size": SIDE, "data.channels": 1})
data_set = open_data_set("fashion-mnist-mini")
data = open_training_data(data_set, recipe)
batches = TrainingBatches(data, recipe, num_classes=10, device=torch.device("cpu"))
EPOCHS, STEPS = (1, 5) if QUICK else (4, batches.steps_per_epoch)
print(f"{batches.num_examples:,} training pictures, {len(data.validation):,} for validation")


# %%
def measure(network: nn.Module, examples: Examples, split: str) -> Evaluation:
    examples = examples.select(torch.arange(100)) if QUICK else examples
    batches = EvaluationBatches(examples, data.preprocessing, torch.device("cpu"))
    return evaluate_model(network, batches, data_set.class_names, split)


# %%
def train(network: nn.Module) -> list[float]:
    """The accuracy on the validation split after each epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * STEPS)
    accuracies: list[float] = []
    for epoch in range(EPOCHS):
        for _, batch in zip(range(STEPS), batches.epoch(epoch), strict=False):
            cross_entropy(network(batch.inputs), batch.targets).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        accuracies.append(measure(network, data.validation, "validation").accuracy)
    return accuracies


# %%
curves: dict[str, list[float]] = {}
results = {}
for name, build in {"dense": lambda: DenseNet(SMALL, 10, in_channels=1), "plain": lambda: build_plain(width)}.items():
    torch.manual_seed(0)
    network, started_at_s = build().to(memory_format=torch.channels_last), time.perf_counter()
    curves[name] = train(network)
    results[name] = measure(network, data_set.openers["test"](), "test")
    low, high = results[name].accuracy_interval
    elapsed_s = time.perf_counter() - started_at_s
    print(
        f"{name}: test accuracy {results[name].accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}, {elapsed_s:.0f} s"
    )
    assert QUICK or low > 0.5  # the short form learns too little to tell

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
for name, accuracies in curves.items():
    axes.plot(range(1, EPOCHS + 1), accuracies, "o-", label=name)
axes.set(xlabel="epoch", ylabel="validation accuracy", xticks=range(1, EPOCHS + 1))
axes.legend()
plt.show()

# %% [markdown] lang="en"
# Read the two intervals before you name a winner. Where they overlap, a thousand test pictures and one seed do not
# decide. The paper compares after 300 epochs, on more pictures, with networks far deeper than these.

# %% [markdown] lang="zh"
# 先看两个置信区间，再说谁更好。区间重叠时，一千张测试图像和一个随机种子分不出胜负。论文比较的是训练 300
# 个周期之后的结果，图像更多，网络也深得多。

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# DenseNet-121 has blocks of 6, 12, 24 and 16 layers. How many channels reach its head, and where do the 121 layers
# come from?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# DenseNet-121 的四个稠密块各有 6、12、24 和 16 层。到达分类头的通道有多少个？121 层又是怎么数出来的？

# %% tags=["solution"]
config = VARIANTS["densenet121"]
channels = count_channels(config)[-1]
layers_of_blocks = 2 * sum(config.layers_per_block)  # each has a 1x1 and a 3x3 convolution
depth = 1 + layers_of_blocks + (len(config.layers_per_block) - 1) + 1  # stem, blocks, transitions, head
print(f"{channels} channels, {depth} layers")
assert channels == build_model("densenet121", num_classes=1000).head.in_features
assert depth == 121

# %% [markdown] lang="en"
# ### Exercise 2
#
# Which is the deepest DenseNet-BC with $k = 12$ and three equal blocks that has fewer than half a million parameters?
# Its depth is $L = 6 n + 4$ for $n$ layers in a block.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 设三个稠密块层数相同、$k = 12$，参数少于五十万的 DenseNet-BC 最深是哪一个？
# 深度是 $L = 6 n + 4$，其中 $n$ 是每块的层数。

# %% tags=["solution"]
counts = {n: count_by_hand(replace(compressed, layers_per_block=(n, n, n)), 10) for n in range(1, 40)}
deepest = max(n for n, parameters in counts.items() if parameters < 500_000)
print(f"L = {6 * deepest + 4} with {counts[deepest]:,} parameters")
assert counts[deepest] < 500_000 <= counts[deepest + 1]

# %% [markdown] lang="en"
# ### Exercise 3
#
# Set the kernels of all layers of a block but the last to zero. Does the output of the last layer still depend on the
# block's input? And if the layers stood in a chain, each reading only the one before it?

# %% [markdown] lang="zh"
# ### 练习 3
#
# 把一个稠密块中除最后一层以外所有层的卷积核都设为零。最后一层的输出还依赖于这个块的输入吗？
# 如果各层排成一条链，每层只读前一层，又会怎样？

# %% tags=["solution"]
with torch.no_grad():
    for layer in layers[:-1]:
        layer.kernels.zero_()
entering.requires_grad_()
maps = chain = entering
for layer in layers:
    last = layer(maps)
    maps = torch.cat((maps, last), dim=1)
    chain = scratch.conv2d(chain.relu(), layer.kernels[:, : chain.shape[1]], padding=1)
weights = torch.randn_like(last)  # a plain sum would be blind: normalised maps have a mean of zero
of_dense, of_chain = (torch.autograd.grad((weights * end).sum(), entering)[0] for end in (last, chain))
print(f"gradient at the input: dense {of_dense.norm():.2f}, chain {of_chain.norm():.2f}")
assert of_dense.norm() > 0 == of_chain.norm()
