# %% [markdown] lang="en"
# # 12 An honest experiment
#
# A test accuracy is a measurement. Afterwards you can
#
# - say how far it may be from the truth, and how many pictures a claim needs,
# - show why whoever chooses by the test split flatters the result, and by how much,
# - find three defects in usual evaluation code, and their effect,
# - compare two networks on the same pictures.
#
# Papers: Wilson 1927, *Probable inference, the law of succession, and statistical inference*; McNemar 1947, *Note on
# the sampling error of the difference between correlated proportions or percentages*. Time: about 45 minutes with the
# exercises.

# %% [markdown] lang="zh"
# # 12 诚实的实验
#
# 测试准确率是一次测量。学完本课，你将能够：
#
# - 说出它可能离真值多远，以及得出一个结论需要多少张图像，
# - 说明为什么用测试集来挑选会美化结果，以及会美化多少，
# - 找出常见评估代码中的三个缺陷，并说出它们的影响，
# - 在同样的图像上比较两个网络。
#
# 论文：Wilson 1927，*Probable inference, the law of succession, and statistical inference*；McNemar 1947，*Note on
# the sampling error of the difference between correlated proportions or percentages*。用时：连同练习约 45 分钟。

# %%
import copy
import json
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

# %%
import candid
from candid import Recipe, workflow
from candid.checkpoint import RunFolder, restore_network
from candid.data.catalog import open_data_set
from candid.evaluation import open_batches
from candid.scores import pair, wilson_interval
from candid.training.progress import Reporter
from candid.training.run import train_run
from candid.words import interval, p_value, percent

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")

# %% [markdown] lang="en"
# ## Split, choose, look once
#
# The pictures are split three ways. The network learns from the training split. The validation split chooses: the
# best epoch here, settings elsewhere. The test split is for one look at the end, so that nothing was fitted to it.
# `candid train` does all of that, and writes down each look.

# %% [markdown] lang="zh"
# ## 划分，挑选，只看一次
#
# 图像分成三份。网络从训练集学习。验证集用来挑选：这里挑选最好的周期，别处挑选各种设置。测试集只在最后看一次，
# 这样就没有任何东西是照着它调出来的。`candid train` 完成这一切，并把每次查看都记录下来。

# %%
settings = {"data.name": "fashion-mnist-mini", "training.epochs": 2 if QUICK else 8}
recipe = Recipe().replace(settings | {"model.name": "lenet-bn"})
run = train_run(recipe, Path("runs/lenet-bn"), effort="off", reporter=Reporter.silent()).path
result = json.loads((run / "result.json").read_text())
[look] = map(json.loads, (run / "test_looks.jsonl").read_text().splitlines())
print({key: look[key] for key in ("checkpoint", "images", "accuracy")})

# %% [markdown] lang="en"
# ## A number has a width
#
# The network is right with an unknown probability on pictures of this kind. A thousand of them estimate it, others
# would have given another number. The Wilson interval holds the truth 19 times in 20.

# %% [markdown] lang="zh"
# ## 数字有宽度
#
# 对这一类图像，网络答对的概率是未知的。一千张图像给出一个估计，换一批图像就会是另一个数。Wilson 区间在 20 次里有 19
# 次包含真值。

# %%
evaluation = candid.evaluate(run, "validation")
print(f"validation {percent(evaluation.accuracy)}, interval {interval(evaluation.accuracy_interval)}")
print(f"test {percent(result['test_accuracy'])}, interval {interval(result['test_accuracy_interval'])}")
for number in (100, 1000, 10_000, 100_000):
    low, high = wilson_interval(round(0.9 * number), number)
    print(f"{number:7,} pictures, 90 % right: from {100 * low:.1f} to {100 * high:.1f} %")

# %% [markdown] lang="en"
# Is it true? A coin that comes up with probability 0.9 is thrown a hundred times, and that two thousand times over.
# We know the truth here, so we can count how often the interval holds it.

# %% [markdown] lang="zh"
# 真是这样吗？把一枚以 0.9 的概率正面朝上的硬币抛一百次，并把这件事重复两千遍。这里我们知道真值，
# 所以能数出区间有多少次包含了它。

# %%
generator = torch.Generator().manual_seed(0)
hits = (torch.rand(2000, 100, generator=generator) < 0.9).sum(dim=1).tolist()
bounds = [wilson_interval(number, 100) for number in hits]
held = sum(low <= 0.9 <= high for low, high in bounds) / len(bounds)
print(f"The interval holds the truth in {percent(held)} of the cases.")
assert 0.93 < held < 0.97

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
for place, (low, high) in enumerate(bounds[:60]):
    axis.plot([place, place], [low, high], color="tab:blue" if low <= 0.9 <= high else "tab:red", linewidth=2)
axis.axhline(0.9, color="tab:gray", linewidth=1)
axis.set(xlabel="experiment", ylabel="95 % interval")
plt.show()

# %% [markdown] lang="en"
# ## Who chooses by the test split flatters
#
# Fifty networks that are equally good: ours, with a little noise on its weights. We choose the one with the best
# accuracy on a half of the test pictures, and then measure it on the other half. The halves are drawn anew two
# hundred times.

# %% [markdown] lang="zh"
# ## 用测试集来挑选，就会美化结果
#
# 设有五十个同样好的网络：就是我们的网络，只在权重上加一点噪声。用一半测试图像挑出准确率最高的那个，
# 再用另一半来测量它。两半重新抽取二百次。

# %%
checkpoint = RunFolder.open(run).load()
test = open_data_set("fashion-mnist-mini").openers["test"]()
_, batches = open_batches(checkpoint, test, CPU)


@torch.no_grad()
def answers(network: nn.Module) -> Tensor:
    """Whether each test picture is recognised, bool [N]."""
    return torch.cat([network(inputs).argmax(dim=1) == labels for inputs, labels in batches])


# %%
def with_noise(seed: int) -> nn.Module:
    network, generator = restore_network(checkpoint).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return network


correct = torch.stack([answers(with_noise(seed)) for seed in range(10 if QUICK else 50)]).double()  # [networks, N]

# %%
chosen_by, fresh = [], []
for seed in range(200):
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    half, other = order[:500], order[500:]
    accuracies = correct[:, half].mean(dim=1)
    best = int(accuracies.argmax())
    chosen_by.append(float(accuracies[best]))
    fresh.append(float(correct[best, other].mean()))
flattery = sum(chosen_by) / 200 - sum(fresh) / 200
print(f"where it was chosen {sum(chosen_by) / 2:.2f} %, elsewhere {sum(fresh) / 2:.2f} %")
print(f"The choice flatters by {100 * flattery:.2f} points; the average network has {percent(float(correct.mean()))}.")
assert flattery > 0

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
edges = torch.linspace(min(fresh), max(chosen_by), 30).tolist()
axis.hist(fresh, edges, alpha=0.6, label="on the other half")
axis.hist(chosen_by, edges, alpha=0.6, label="where it was chosen")
axis.set(xlabel="accuracy of the chosen network", ylabel="times")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# That is why settings are chosen on the validation split. The more one tries, the more the choice flatters.
#
# ## Defect: evaluation in training mode
#
# In training mode, batch normalisation takes mean and variance from the batch itself. A network that is evaluated so
# answers by the neighbours of a picture. The notes' code leaves the mode to whoever calls. Here the pictures come
# sorted by class, as folders give them.

# %% [markdown] lang="zh"
# 所以各种设置都在验证集上挑选。试得越多，挑选就把结果美化得越多。
#
# ## 缺陷：在训练模式下评估
#
# 在训练模式下，批量归一化从这一批图像自身取均值和方差。这样评估的网络，答案取决于同批的其他图像。
# 笔记里的代码把模式交给调用者去管。这里的图像按类别排好，正如文件夹给出的那样。

# %%
_, by_class = open_batches(checkpoint, test.select(test.labels.argsort(stable=True)), CPU)


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    answers = [network(inputs).argmax(dim=1) == labels for inputs, labels in by_class]
    return float(torch.cat(answers).double().mean())


right, wrong = restore_network(checkpoint).eval(), restore_network(checkpoint).train()
in_evaluation, in_training = accuracy(right), accuracy(wrong)
print(f"evaluation mode {percent(in_evaluation)}, training mode {percent(in_training)}")
assert in_training < in_evaluation - 0.02

# %% [markdown] lang="en"
# The pass in training mode has changed the network as well: its running statistics are now those of the test
# pictures.

# %% [markdown] lang="zh"
# 训练模式下的这一遍还改变了网络本身：它的滑动统计量现在成了测试图像的统计量。

# %%
moved = copy.deepcopy(wrong).eval()
changed = sum(not torch.equal(one, other) for one, other in zip(moved.buffers(), right.buffers(), strict=True))
print(f"{changed} buffers have changed; accuracy afterwards {percent(accuracy(moved))}")
assert changed > 0

# %% [markdown] lang="en"
# ## Defect: a mean over unequal batches
#
# The usual code averages the accuracies of the batches. The last batch is smaller and weighs as much as the others.
# candid counts pictures and divides once.

# %% [markdown] lang="zh"
# ## 缺陷：对大小不等的批量取均值
#
# 常见的代码对各批的准确率取平均。最后一批较小，分量却与其他批相同。candid 数的是图像，只在最后除一次。

# %%
ours = answers(right).double()
for size in (128, 300, 999):
    means = torch.stack([part.mean() for part in ours.split(size)])
    print(f"batches of {size:3}: mean of means {percent(float(means.mean()))}, true {percent(float(ours.mean()))}")

# %% [markdown] lang="en"
# ## Defect: a count that is never reset
#
# The notes' loop adds up the losses of an epoch and divides by a number of batches that goes on counting from epoch
# to epoch. From the second epoch on the loss is too small, and the curve falls even where nothing is learned.

# %% [markdown] lang="zh"
# ## 缺陷：从不清零的计数
#
# 笔记里的循环把一个周期的损失加起来，再除以批量数，而这个批量数从一个周期累计到下一个周期。从第二个周期起，
# 损失就偏小，即使什么也没学到，曲线也会下降。

# %%
losses = torch.full((5, 20), 2.3)  # five epochs of twenty batches in which nothing is learned
count, shown = 0, []
for epoch in losses:
    count += len(epoch)
    shown.append(float(epoch.sum()) / count)
print("true ", [round(float(epoch.mean()), 3) for epoch in losses])
print("shown", [round(loss, 3) for loss in shown])
assert shown[0] > 4.9 * shown[4]

# %% [markdown] lang="en"
# ## Two networks on the same pictures
#
# Intervals of two networks may overlap although one is better, because both answered the same pictures. What tells
# them apart are those that only one got right. McNemar's test asks how likely so uneven a split is by chance.

# %% [markdown] lang="zh"
# ## 同样图像上的两个网络
#
# 即使其中一个更好，两个网络的区间也可能重叠，因为它们回答的是同样的图像。能区分它们的，
# 是只有一个答对的那些图像。McNemar 检验问的是：纯属偶然时，分得这样不均匀的可能性有多大。

# %%
wanted = recipe.replace({"model.name": "lenet"})
other = train_run(wanted, Path("runs/lenet"), effort="off", reporter=Reporter.silent()).path
found = workflow.compare([run, other], "comparison.html")
[duel] = found.duels
print(f"only {duel.first}: {duel.pairing.only_first}, only {duel.second}: {duel.pairing.only_second}")
print(f"McNemar's test: {p_value(duel.pairing.p_value)}; page: {Path('comparison.html').stat().st_size:,} bytes")

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# How many test pictures does it take for an interval of at most one point to either side, where 90 % are right?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 在 90 % 答对的情况下，要让区间向两侧各不超过一个百分点，需要多少张测试图像？


# %% tags=["solution"]
def half_width(number: int) -> float:
    low, high = wilson_interval(round(0.9 * number), number)
    return (high - low) / 2


needed = next(number for number in range(100, 10_000, 10) if half_width(number) <= 0.01)
print(f"{needed:,} pictures")
assert half_width(needed) <= 0.01 < half_width(needed - 10)

# %% [markdown] lang="en"
# ### Exercise 2
#
# Calculate McNemar's p-value by hand: of `n` pictures that only one network got right, each went to the first one
# with probability one half. How likely is a split that is at least as uneven as 12 to 30?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 请手工计算 McNemar 的 p 值：在只有一个网络答对的 `n` 张图像中，每一张以二分之一的概率归第一个网络。
# 至少像 12 比 30 这样不均匀的划分，可能性有多大？

# %% tags=["solution"]
n, fewer = 12 + 30, 12
by_hand = 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
first = torch.tensor([True] * 12 + [False] * 30)
assert abs(pair(first, ~first).p_value - by_hand) < 1e-12
print(p_value(by_hand))

# %% [markdown] lang="en"
# ### Exercise 3
#
# Look at the test split of `runs/lenet` a second time with `candid.evaluate`. Where is that written down?

# %% [markdown] lang="zh"
# ### 练习 3
#
# 用 `candid.evaluate` 再看一次 `runs/lenet` 的测试集。这件事记录在哪里？

# %% tags=["solution"]
candid.evaluate(other, "test")
looks = [json.loads(line) for line in (other / "test_looks.jsonl").read_text().splitlines()]
print([look["checkpoint"] for look in looks])
assert len(looks) == 2
