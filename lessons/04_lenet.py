# %% [markdown] lang="en"
# # 04 LeNet trains
#
# Afterwards you can
#
# - follow a picture through LeNet and count the parameters of each layer,
# - write the loop that trains a network, and read its curves,
# - say why a network with sigmoids may learn nothing at all, and mend it,
# - look at the kernels that were learned, and at what they make of a picture,
# - find the mistake in an accuracy that comes from a network which was trained before.
#
# Paper: LeCun, Bottou, Bengio and Haffner 1998, *Gradient-based learning applied to document recognition*. Time: about
# 45 minutes with the exercises.

# %% [markdown] lang="zh"
# # 04 训练 LeNet
#
# 学完本课，你将能够：
#
# - 跟着一张图像走过 LeNet，数出每一层的参数量，
# - 写出训练网络的循环，并读懂它的曲线，
# - 说出使用 sigmoid 的网络为什么可能什么也学不到，并加以改正，
# - 查看学到的卷积核，以及它们把图像变成了什么，
# - 看出一个准确率错在哪里：它来自一个早已训练过的网络。
#
# 论文：LeCun、Bottou、Bengio 和 Haffner 1998，*Gradient-based learning applied to document recognition*。
# 用时：连同练习约 45 分钟。

# %%
import json
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# %%
from candid import Evaluation, Recipe, build_model, scratch
from candid.data.catalog import open_data_set
from candid.data.loading import EvaluationBatches, TrainingBatches, open_training_data
from candid.evaluation import evaluate_model
from candid.models.summary import summarize
from candid.training.progress import Reporter
from candid.training.run import train_run
from candid.words import interval, percent

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")

# %% [markdown] lang="en"
# ## From 28 by 28 pixels to ten numbers
#
# Two convolutions of 5 by 5 find shapes, and after each of them a pooling halves the side. What is left are 16 maps of
# 4 by 4: a row of 256 numbers. Three linear layers make ten logits of it, one for each class. Most parameters are in
# the first linear layer.

# %% [markdown] lang="zh"
# ## 从 28×28 像素到十个数
#
# 两个 5×5 的卷积寻找形状，每个卷积之后的汇聚把边长减半。最后剩下 16 张 4×4 的特征图：一行 256 个数。
# 三个线性层由它算出十个 logit，每个类别一个。大部分参数在第一个线性层里。

# %%
network = build_model("lenet", num_classes=10, in_channels=1)
summary = summarize("lenet", num_classes=10)
for layer in summary.layers:
    print(
        f"{layer.name:<11} {layer.output!s:<14} {layer.parameters:7,} parameters {layer.multiply_adds:9,} multiply-adds"
    )
print(f"together {summary.parameters:,}")
assert summary.parameters == sum(parameter.numel() for parameter in network.parameters())

# %% [markdown] lang="en"
# ## The pictures
#
# `fashion-mnist-mini` is a part of Fashion-MNIST that ships with candid: ten kinds of clothing. A tenth of the training
# pictures is held out for validation. The test pictures wait for the end.

# %% [markdown] lang="zh"
# ## 图像
#
# `fashion-mnist-mini` 是 Fashion-MNIST 的一部分，随 candid 一起发布：十种服饰。训练图像的十分之一留作验证。
# 测试图像留到最后。

# %%
settings = {"data.name": "fashion-mnist-mini", "data.image_size": 28, "data.channels": 1}
recipe = Recipe().replace(settings | {"training.batch_size": 64, "data.validation": 0.1})
data_set = open_data_set("fashion-mnist-mini")
data = open_training_data(data_set, recipe)
batches = TrainingBatches(data, recipe, num_classes=10, device=CPU)
print(f"{batches.num_examples:,} pictures to train, {len(data.validation):,} to validate")

# %%
figure, axes = plt.subplots(2, 5, figsize=(6.4, 2.9), layout="constrained")
for label, axis in enumerate(axes.flat):
    index = int((data.train.labels == label).nonzero()[0])
    axis.imshow(data.train.images[index, 0].numpy(), cmap="gray")
    axis.set_title(data_set.class_names[label], fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# ## One step
#
# The logits of a batch become a loss, the loss becomes a gradient for each parameter, and each parameter goes a little
# way against its gradient. Before anything is learned no class is preferred for a reason, and the loss is not far from
# $\ln 10$. A target is a row with a 1 at the true class.

# %% [markdown] lang="zh"
# ## 一步
#
# 一批图像的 logit 变成损失，损失变成每个参数的梯度，每个参数再逆着自己的梯度走一小步。还没学到东西时，
# 网络没有理由偏向任何类别，损失离 $\ln 10$ 不远。目标是一行数，真实类别处为 1。

# %%
torch.manual_seed(0)
network = build_model("lenet", num_classes=10, in_channels=1)
batch = next(iter(batches.epoch(0)))
labels = batch.targets.argmax(dim=1)
loss = scratch.cross_entropy(network(batch.inputs), labels)
loss.backward()
with torch.no_grad():
    for parameter in network.parameters():
        parameter -= 0.1 * parameter.grad
    after = scratch.cross_entropy(network(batch.inputs), labels)
print(f"ln 10 is {math.log(10):.3f}; the loss is {loss.item():.3f}, and {after.item():.3f} after the step")
assert after < loss

# %% [markdown] lang="en"
# ## The loop
#
# Training is that step, over and over. An epoch shows each training picture once. After each epoch the network answers
# the validation pictures, from which it does not learn. `torch.optim.SGD` takes the step, with momentum here.

# %% [markdown] lang="zh"
# ## 循环
#
# 训练就是一遍又一遍地重复这一步。一个周期把每张训练图像展示一次。每个周期之后，网络对验证图像作答，但不从中学习。
# 这一步由 `torch.optim.SGD` 执行，这里用了动量。


# %%
def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> tuple[float, float]:
    """The loss and the accuracy of an epoch's training pictures, each as the network was when it met them."""
    loss_sum, correct, seen = 0.0, 0, 0
    for inputs, targets, _ in batches.epoch(epoch):
        logits = network(inputs)
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(inputs)
        correct += int((logits.argmax(dim=1) == targets.argmax(dim=1)).sum())
        seen += len(inputs)
    return loss_sum / seen, correct / seen


# %%
def validate(network: nn.Module) -> Evaluation:
    pictures = EvaluationBatches(data.validation, data.preprocessing, CPU)
    return evaluate_model(network, pictures, data_set.class_names, "validation")


def train(network: nn.Module, epochs: int, rate: float = 0.05) -> list[tuple[float, float, float]]:
    """Loss and accuracy in training, and accuracy in validation, of each epoch."""
    optimizer, rows = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9), []
    for epoch in range(epochs):
        rows.append((*train_epoch(network, optimizer, epoch), validate(network).accuracy))
    return rows


# %%
EPOCHS = 2 if QUICK else 15
torch.manual_seed(0)
lenet = build_model("lenet-relu", num_classes=10, in_channels=1)
untrained = lenet.conv1.weight.detach().clone()
rows = train(lenet, EPOCHS)
for epoch, (loss, accuracy, validation) in enumerate(rows, start=1):
    print(f"epoch {epoch:2}: loss {loss:.3f}, accuracy {accuracy:.3f}, validation {validation:.3f}")
assert rows[-1][0] < rows[0][0]
assert rows[-1][2] > 0.5

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
epochs = range(1, EPOCHS + 1)
axes[0].plot(epochs, [row[0] for row in rows], "o-", markersize=3)
axes[0].set(xlabel="epoch", ylabel="training loss")
axes[1].plot(epochs, [row[1] for row in rows], "o-", markersize=3, label="training")
axes[1].plot(epochs, [row[2] for row in rows], "o-", markersize=3, label="validation")
axes[1].set(xlabel="epoch", ylabel="accuracy")
axes[1].legend()
plt.show()

# %% [markdown] lang="en"
# The training accuracy goes on rising while that of validation hardly moves: the network learns its pictures by heart.
# The first points may lie the other way round, because the training numbers come from all moments of the epoch and that
# of validation from its end.

# %% [markdown] lang="zh"
# 训练准确率继续上升，验证准确率却几乎不动：网络在背诵它的图像。最初几个点可能相反，
# 因为训练的数字来自整个周期的各个时刻，而验证的数字来自周期结束时。

# %% [markdown] lang="en"
# ## With sigmoids: a beginning that decides
#
# The paper's network has no ReLU but a smooth step, and the notes use the sigmoid. Its slope is at most a quarter: what
# tells two pictures apart shrinks in each layer. With PyTorch's own initial weights the logits of different pictures
# are almost the same. candid draws weights that are as large as the slope asks for.

# %% [markdown] lang="zh"
# ## 使用 sigmoid：起点决定成败
#
# 论文里的网络没有 ReLU，用的是平滑的阶跃函数；笔记里用的是 sigmoid。它的斜率最多四分之一：
# 区分两张图像的东西每过一层就缩小一次。用 PyTorch 自带的初始权重，不同图像的 logit 几乎一样。candid
# 抽取的初始权重足够大，正好补偿这个斜率。


# %%
def with_default_weights() -> nn.Module:
    network = build_model("lenet", num_classes=10, in_channels=1)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return network


# %%
starts = {
    "PyTorch's weights": with_default_weights,
    "candid's weights": lambda: build_model("lenet", 10, in_channels=1),
}
spreads = {}
for name, build in starts.items():
    torch.manual_seed(0)
    spreads[name] = build()(batch.inputs).std(dim=0).mean().item()  # over the pictures, for each class
    print(f"{name:<18} logits of the pictures differ by {spreads[name]:.1e}")
assert spreads["candid's weights"] > 50 * spreads["PyTorch's weights"]

# %%
sigmoids = {}
for name, build in starts.items():
    torch.manual_seed(0)
    sigmoids[name] = train(build(), epochs=1 if QUICK else 8)
    print(f"{name:<18} validation accuracy {sigmoids[name][-1][2]:.3f}")
assert QUICK or sigmoids["candid's weights"][-1][2] > sigmoids["PyTorch's weights"][-1][2] + 0.3

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, found in sigmoids.items():
    axis.plot(range(1, len(found) + 1), [row[0] for row in found], "o-", markersize=3, label=f"sigmoid, {name}")
axis.axhline(math.log(10), color="tab:gray", linewidth=1)
axis.set(xlabel="epoch", ylabel="training loss")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# The grey line is $\ln 10$, the loss of whoever knows nothing.
#
# ## What the first layer has learned
#
# Six kernels of 5 by 5, before and after, and the maps that the trained ones make of a picture. Red is positive, blue
# negative.

# %% [markdown] lang="zh"
# 灰线是 $\ln 10$，即什么也不知道时的损失。
#
# ## 第一层学到了什么
#
# 六个 5×5 的卷积核，训练前和训练后，以及训练后的卷积核由一张图像得到的特征图。红色为正，蓝色为负。

# %%
picture = EvaluationBatches(data.validation.select(torch.tensor([3])), data.preprocessing, CPU)
inputs, _ = next(iter(picture))
with torch.no_grad():
    shown = untrained[:, 0], lenet.conv1.weight.detach()[:, 0], lenet.conv1(inputs)[0]
figure, axes = plt.subplots(3, 6, figsize=(6.4, 3.4), layout="constrained")
for row, images in zip(axes, shown, strict=True):
    limit = float(images.abs().max())
    for axis, image in zip(row, images, strict=True):
        axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(xticks=[], yticks=[])
for row, title in zip(axes, ("before", "after", "maps"), strict=True):
    row[0].set_ylabel(title)
plt.show()

# %% [markdown] lang="en"
# ## Where it is wrong
#
# Each row of the confusion is a true class, each column an answer. Clothes for the upper body are taken
# for one another.

# %% [markdown] lang="zh"
# ## 错在哪里
#
# 混淆矩阵的每一行是一个真实类别，每一列是一种回答。上衣之间容易互相混淆。

# %%
evaluation = validate(lenet)
figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
axis.imshow(evaluation.confusion.numpy(), cmap="Blues", vmax=20)
axis.set_xticks(range(10), data_set.class_names, rotation=90)
axis.set_yticks(range(10), data_set.class_names)
axis.set(xlabel="answer", ylabel="truth")
plt.show()
for found in evaluation.confused_pairs(3):
    print(f"{found.truth} taken for {found.prediction}: {found.images}")

# %% [markdown] lang="en"
# ## The same in one call
#
# `candid.train` has that loop too, and besides: it keeps the epoch that was best in validation, looks at the test
# pictures once, and writes all of it into a folder. (In the lesson it is called without its progress.)

# %% [markdown] lang="zh"
# ## 一次调用完成同样的事
#
# `candid.train` 也有这个循环，此外：它保留验证时最好的那个周期，只看一次测试图像，并把这一切写进一个文件夹。
# （本课调用它时关掉了进度显示。）

# %%
wanted = recipe.replace({"model.name": "lenet-relu", "training.epochs": EPOCHS})
run = train_run(wanted, Path("runs/lenet"), effort="off", reporter=Reporter.silent()).path
result = json.loads((run / "result.json").read_text())
print(f"test accuracy {percent(result['test_accuracy'])}, interval {interval(result['test_accuracy_interval'])}")
print(sorted(path.name for path in run.iterdir()))

# %% [markdown] lang="en"
# ## Defect: an accuracy of a network that was trained before
#
# In the notes LeNet reaches a high accuracy after five epochs. Its first epoch already begins with an accuracy that no
# fresh network has. That is what happens where the cell of a notebook that trains is run again while the network is
# still the old one. The number is not that of five epochs. Here the training runs twice, and then once with a network
# that is made anew.

# %% [markdown] lang="zh"
# ## 缺陷：来自早已训练过的网络的准确率
#
# 笔记里的 LeNet 五个周期之后达到很高的准确率。可是它的第一个周期一开始的准确率，任何新网络都不会有。
# 在笔记本里把训练的单元格再运行一次，而网络还是原来那个，就会出现这种情况。这个数字并不是五个周期的结果。
# 这里先把训练运行两次，再用新建的网络运行一次。

# %%
FIVE = 1 if QUICK else 5
torch.manual_seed(0)
kept = build_model("lenet-relu", num_classes=10, in_channels=1)
first, again = train(kept, FIVE), train(kept, FIVE)
torch.manual_seed(0)
fresh = train(build_model("lenet-relu", num_classes=10, in_channels=1), FIVE)
for name, found in {"first time": first, "run again": again, "made anew": fresh}.items():
    print(f"{name:<11} first epoch {found[0][1]:.3f} in training, last epoch {found[-1][2]:.3f} in validation")
assert again[0][1] > first[0][1] + 0.1
assert fresh == first

# %% [markdown] lang="en"
# What gives it away is the first line of the log: nobody begins there. A recipe with a seed, and a network that is
# built where the training begins, cannot be continued by mistake.

# %% [markdown] lang="zh"
# 露出破绽的是日志的第一行：没有哪个新网络会从那里起步。只要配方带有随机种子，网络又在训练开始处才建立，
# 就不会误把旧网络接着训练下去。

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# Count the parameters of each layer by hand, and check the sum.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 请手工数出每一层的参数量，并核对总和。

# %% tags=["solution"]
by_hand = {
    "conv1": 6 * (1 * 5 * 5 + 1),
    "conv2": 16 * (6 * 5 * 5 + 1),
    "linear1": 120 * (16 * 4 * 4 + 1),
    "linear2": 84 * (120 + 1),
    "head": 10 * (84 + 1),
}
print(by_hand, "together", sum(by_hand.values()))
assert all(layer.parameters == by_hand.get(layer.name, 0) for layer in summary.layers)

# %% [markdown] lang="en"
# ### Exercise 2
#
# Train for two epochs with rates from a thousandth to two. What do a rate that is too small and one that is too large
# look like?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 用从千分之一到二的学习率各训练两个周期。学习率太小和太大分别是什么样子？

# %% tags=["solution"]
losses = {}
for rate in (0.001, 0.01, 0.1, 2.0):
    torch.manual_seed(0)
    network = build_model("lenet-relu", num_classes=10, in_channels=1)
    losses[rate] = train(network, epochs=1 if QUICK else 2, rate=rate)[-1][0]
    print(f"rate {rate:<6} loss {losses[rate]:.3f}")
assert losses[0.01] < losses[0.001]
assert not losses[2.0] < losses[0.01]  # nan is neither smaller nor larger

# %% [markdown] lang="en"
# ### Exercise 3
#
# LeNet takes pictures of 28 px. Move a picture by four pixels to the right. Does its answer stay the same? What share
# of the validation pictures keeps its answer?

# %% [markdown] lang="zh"
# ### 练习 3
#
# LeNet 接受 28 像素的图像。把图像向右移动四个像素，答案还一样吗？有多大比例的验证图像答案不变？


# %% tags=["solution"]
@torch.no_grad()
def answers(moved_px: int) -> Tensor:
    pictures = EvaluationBatches(data.validation, data.preprocessing, CPU)
    return torch.cat([lenet(images.roll(moved_px, dims=3)).argmax(dim=1) for images, _ in pictures])


stay = (answers(4) == answers(0)).double().mean().item()
print(f"{percent(stay)} keep their answer")
assert stay < 0.95  # convolutions move with the picture, the linear layers do not
