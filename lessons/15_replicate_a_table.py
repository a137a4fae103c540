# %% [markdown] lang="en"
# # 15 Replicate a table
#
# Afterwards you can read a table of a paper as a plan of runs, say what it would cost on your machine, scale it down
# without deceiving yourself, put the results side by side with their spread, and say what they show and what not.
#
# Papers: Huang, Liu, van der Maaten and Weinberger 2017, *Densely Connected Convolutional Networks*, arXiv:1608.06993;
# Bouthillier and others 2021, *Accounting for Variance in Machine Learning Benchmarks*, arXiv:2103.03098.
#
# Time: about an hour with the exercises.

# %% [markdown] lang="zh"
# # 15 复现论文中的一张表
#
# 学完本课，你能把论文中的一张表读成一份训练计划，说出它在自己的机器上要花多少时间，能把它缩小而不自欺，
# 能把结果连同离散程度并排列出，并说清它们说明了什么、没有说明什么。
#
# 论文：Huang、Liu、van der Maaten 和 Weinberger 2017，*Densely Connected Convolutional
# Networks*，arXiv:1608.06993；Bouthillier 等人 2021，*Accounting for Variance in Machine Learning
# Benchmarks*，arXiv:2103.03098。
#
# 用时：连同练习约一小时。

# %%
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# %%
from candid import Evaluation, Recipe, build_model, workflow
from candid.data.catalog import open_data_set
from candid.data.examples import Examples, stratified_holdout
from candid.data.loading import EvaluationBatches, TrainingBatches, open_training_data
from candid.evaluation import evaluate_model
from candid.kept_evaluation import load_evaluation
from candid.models import count_parameters
from candid.paper_tables import COLUMNS, find_paper
from candid.recipe import list_differences
from candid.recipes import find_recipe
from candid.scores import pair, wilson_interval

# %%
from candid.training.optimization import RateSchedule
from candid.training.progress import Reporter
from candid.training.run import train_run
from candid.words import aligned, interval
from candid.zoo import read_entries

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")
FOLDER = Path("lesson-15")  # all that this lesson writes is in it
shutil.rmtree(FOLDER, ignore_errors=True)  # what an earlier run of the lesson left

# %% [markdown] lang="en"
# ## What the table says
#
# Table 2 of the paper has the test errors of 21 rows of networks on three data sets. A plus stands for pictures that
# are shifted and mirrored. `candid models --paper densenet` shows all of it beside candid's networks. The first thing
# to check costs nothing: a network with another number of parameters is another network.

# %% [markdown] lang="zh"
# ## 表里写了什么
#
# 论文的表 2 有 21 行，是各个网络在三个数据集上的测试错误率。加号表示图像经过平移和镜
# 像。`candid models --paper densenet` 把整张表与 candid 的网络并排列出。首先要核对的事不花什么代价：参数个数不同，
# 就是另一个网络。

# %%
paper, C10_PLUS = find_paper("densenet"), COLUMNS.index("C10+")
dense = [row for row in paper.small_images if row.model.startswith("densenet")]
assert len(paper.small_images) == 21
for row in dense:
    counted = count_parameters(row.model, num_classes=10)
    print(f"{row.model:<20}{row.millions:5.1f} M printed, {counted:11,} counted, error {row.errors[C10_PLUS]:.2f} %")
    assert round(counted / 1e6, 1) == row.millions
assert count_parameters("densenet-bc-100-12", num_classes=10) == 769_162

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
for label, rows in (("others", [row for row in paper.small_images if row not in dense]), ("DenseNets", dense)):
    points = [(row.millions, row.errors[C10_PLUS]) for row in rows if row.millions and row.errors[C10_PLUS]]
    axis.plot(*zip(*points, strict=True), "o", label=label)
axis.set(xscale="log", xlabel="parameters (millions)", ylabel="error on C10+ (%)")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# What the figure claims is that DenseNets need fewer parameters for an error.
#
# ## The recipe
#
# A number belongs to a recipe: data, augmentation, batch, optimiser, schedule, epochs. Below are the keys in which the
# paper's recipe is not candid's default. CIFAR-10 has 50,000 training pictures. The paper holds 5,000 of them out for
# validation while settings are chosen. The final runs train on all 50,000, and the last epoch counts. The test split
# is for that one number.

# %% [markdown] lang="zh"
# 图中的主张是：达到同样的错误率，DenseNet 需要的参数更少。
#
# ## 配方
#
# 一个数字属于一个配方：数据、增广、批量、优化器、学习率的变化、周期数。下面列出论文的配方与 candid
# 默认值不同的各项。CIFAR-10 有 50,000 张训练图像。论文在挑选设置时留出其中 5,000 张作验证。最后的训练用上全部 50,000
# 张，取最后一个周期。测试集只用来得到这一个数。

# %%
recipe = find_recipe("papers/densenet-bc-100-12-cifar10-augmented").replace({"data.image_size": 32})
for key, (_, value) in list_differences(Recipe(), recipe).items():
    print(f"{key:<28}{value}")
assert (recipe.training.epochs, recipe.training.batch_size, recipe.data.validation) == (300, 64, 0)

# %% [markdown] lang="en"
# ## What it costs here
#
# We time a few training steps of the paper's network on batches of its size, and multiply by pictures and epochs. The
# other rows are estimated by their multiply-adds. That is rough, as lesson 11 shows, but tells hours from weeks.

# %% [markdown] lang="zh"
# ## 在这台机器上要花多少时间
#
# 取论文的网络和批量大小，给几个训练步计时，再乘以图像数和周期数。其余各行按乘加次数估算。第 11 课说明过，
# 这样的估算很粗，但足以分清是几小时还是几星期。

# %%
NETWORK, BATCH_SIZE, TRIES = ("densenet-bc-40-12", 8, 1) if QUICK else ("densenet-bc-100-12", 64, 2)


def time_of_a_picture(name: str) -> float:
    """Seconds of a training step for each picture of its batch; the fastest of several."""
    network = build_model(name, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    images, seconds = torch.randn(BATCH_SIZE, 3, 32, 32).to(memory_format=torch.channels_last), []
    for _ in range(TRIES + 1):
        started_at_s = time.perf_counter()
        cross_entropy(network(images), torch.arange(BATCH_SIZE) % 10).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started_at_s)
    return min(seconds[1:]) / BATCH_SIZE  # the first step compiles and allocates


# %%
multiply_adds = {entry.name: entry.multiply_adds for entry in read_entries()}
torch.manual_seed(0)
picture_s, num_pictures = time_of_a_picture(NETWORK), 300 * 50_000
days = {
    row.model: num_pictures * picture_s * multiply_adds[row.model] / multiply_adds[NETWORK] / 86_400 for row in dense
}
for name, number in days.items():
    print(f"{name:<20}{multiply_adds[name] / 1e6:6,.0f} M multiply-adds a picture: about {number:5.1f} days")
print(f"The column C10+ of these rows would take about {sum(days.values()):.0f} days, with one seed each.")
assert sum(days.values()) > 1

# %% [markdown] lang="en"
# Does it fit into memory? `candid plan papers/densenet-bc-100-12-cifar10-augmented` says so before anything is
# trained. CIFAR-10 is not here, so other pictures stand in for it with three channels of 32 px: what a step holds does
# not depend on what they show. The rows are ways to train with the same mathematics, as in lesson 10.

# %% [markdown] lang="zh"
# 内存够吗？`candid plan papers/densenet-bc-100-12-cifar10-augmented` 在训练之前就能回答。
# 这里没有 CIFAR-10，就用别的图像以三个通道、32 像素的形式代替：一个训练步占用多少内存，与图像内容无关。
# 表中各行是数学上相同的几种训练方式，见第 10 课。

# %%
stand_in = {"data.name": "fashion-mnist-mini", "data.channels": 3, "model.name": NETWORK}
plan = workflow.plan(recipe.replace({**stand_in, "training.precision": "fp32"}), device="cpu")
print(plan.text())

# %% [markdown] lang="en"
# ## Scale it down, and say so
#
# An evening is not enough for that, so everything becomes smaller. What counts is to keep what the claim is about, to
# change the rest for both rows alike, and to write down every change. The recipe does the writing. We keep
#
# - the family of networks, with bottlenecks and compression and the growth rate,
# - optimiser, rate, batch and the shape of the schedule,
# - a validation split of a tenth, which chooses the epoch, and one look at the test split.
#
# The rows become smaller too: ResNet-20 stands for ResNet-110 and 40 layers for 100. And both are trained by one
# recipe, where the paper quotes the ResNets from papers with recipes of their own.

# %% [markdown] lang="zh"
# ## 缩小规模，并如实说明
#
# 一个晚上做不完这些，所以一切都要变小。要紧的是：保留那个主张所涉及的东西，其余的改动对两行一视同仁，
# 并且把每一处改动都写下来。这由配方来写。我们保留
#
# - 网络所属的一族，连同瓶颈、压缩和增长率，
# - 优化器、学习率、批量，以及学习率变化的形状，
# - 占十分之一的验证集，用它挑选周期，以及只看一次测试集。
#
# 各行的网络也变小：用 ResNet-20 代表 ResNet-110，用 40 层代表 100 层。而且两者用同一个配方训练；
# 论文中 ResNet 的数字引自别的论文，那些论文各有自己的配方。

# %%
SEEDS, EPOCHS = (range(2), 1) if QUICK else (range(3), 2)
smaller_data = {"data.name": "fashion-mnist-mini", "data.image_size": 14, "data.validation": 0.1}
shorter = {"training.epochs": EPOCHS, "augmentation.crop_padding": 2}
small = recipe.replace({"model.name": "densenet-bc-40-12", **smaller_data, **shorter})
for key, (theirs, ours) in list_differences(recipe, small).items():
    print(f"{key:<28}{theirs!s:>20} -> {ours}")
assert (small.optimizer, small.schedule) == (recipe.optimizer, recipe.schedule)


# %%
def list_rates(recipe: Recipe, num_pictures: int) -> list[float]:
    """The learning rate of each step."""
    steps, epochs = math.ceil(num_pictures / recipe.training.batch_size), recipe.training.epochs
    schedule = RateSchedule(recipe.schedule, recipe.optimizer.rate, steps, epochs)
    return [schedule.rate(step) for step in range(steps * epochs)]


curves = {"paper": list_rates(recipe, 50_000), "here": list_rates(small, 5_400)}
figure, axis = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
for (label, curve), style in zip(curves.items(), ("-", "--"), strict=True):
    shares = [step / len(curve) for step in range(len(curve))]
    axis.semilogy(shares, curve, style, label=f"{label}: {len(curve):,} steps")
axis.set(xlabel="share of the run", ylabel="learning rate")
axis.legend()
plt.show()

# %%
for share in (0.1, 0.4, 0.6, 0.9):
    theirs, ours = (curve[int(share * len(curve))] for curve in curves.values())
    assert theirs == ours

# %% [markdown] lang="en"
# ## The runs
#
# Each row is trained with several seeds. A seed decides the first weights, the order of the pictures, their shifts,
# and which are held out. On the command line that is `candid train FILE --seeds 0,1,2`.

# %% [markdown] lang="zh"
# ## 训练
#
# 每一行用几个随机种子训练。种子决定初始权重、图像的顺序、平移的方式，以及留出哪些图像。在命令行上是
# `candid train FILE --seeds 0,1,2`。

# %%
data_set = open_data_set("fashion-mnist-mini")


def fewer(opener: Callable[[], Examples]) -> Examples:
    """Some pictures of each class, for the short form of this lesson."""
    examples = opener()
    return examples.select(stratified_holdout(examples.labels, 200, seed=0)[1])


if QUICK:
    openers = {split: partial(fewer, opener) for split, opener in data_set.openers.items()}
    data_set = replace(data_set, openers=openers)


# %%
def train_and_test(name: str, seed: int) -> Evaluation:
    """What a network says of the test pictures, at its one look."""
    out = FOLDER / f"{name}-seed-{seed}"
    wanted = small.replace({"model.name": name, "seed": seed})
    train_run(wanted, out, effort="off", data_set=data_set, reporter=Reporter.silent())
    return load_evaluation(out / "evaluation-test")


tests = {name: [train_and_test(name, seed) for seed in SEEDS] for name in ("resnet20-cifar", "densenet-bc-40-12")}

# %% [markdown] lang="en"
# ## The table
#
# Beside the mean stands the spread, the standard deviation over seeds. From few seeds the mean itself is not well
# known: Student's $t$ makes its interval wide. A mean without these two cannot be compared with anything.

# %% [markdown] lang="zh"
# ## 表
#
# 均值旁边写上离散程度，即各个种子之间的标准差。种子很少时，均值本身也不准：Student 的 $t$ 使它的区间变宽。
# 没有这两项的均值，无法与任何东西比较。

# %%
T = {1: 12.71, 2: 4.30, 4: 2.78}  # by degrees of freedom; 95 % of Student's t lie between -t and t
errors = {name: [100 * (1 - one.accuracy) for one in row] for name, row in tests.items()}
table = [("network", "parameters", *(f"seed {seed}" for seed in SEEDS), "mean", "spread", "95 % interval")]
for name, row in errors.items():
    half = T[len(row) - 1] * stdev(row) / len(row) ** 0.5
    bounds = f"{fmean(row) - half:.2f} to {fmean(row) + half:.2f}"
    numbers = (f"{number:.2f}" for number in (*row, fmean(row), stdev(row)))
    table.append((name, f"{count_parameters(name, 10, in_channels=1):,}", *numbers, bounds))
print("Test error in %")
print("\n".join(aligned(table, numbers=range(1, len(table[0])))))

# %%
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for place, (name, row) in enumerate(tests.items()):
    for offset, one in enumerate(row):
        low, high = (100 * (1 - bound) for bound in one.accuracy_interval)
        axis.plot([place + 0.15 * offset] * 2, [low, high], color=f"C{place}", linewidth=1)
        axis.plot(place + 0.15 * offset, 100 * (1 - one.accuracy), "o", color=f"C{place}")
    axis.plot([place - 0.1, place + 0.15 * len(row)], [fmean(errors[name])] * 2, ":", color=f"C{place}")
axis.set(ylabel="test error (%)", xlim=(-0.4, 1.8))
axis.set_xticks([0.15, 1.15], list(tests))
plt.show()

# %% [markdown] lang="en"
# A point is a seed, the bar through it is what the thousand test pictures leave open, the dotted line is the mean.
#
# ## What may be concluded
#
# McNemar's test, from lesson 12, compares two trained networks on the same test pictures. It does not compare two
# architectures: two seeds of the same one differ as well. So we look at both kinds of pairs. Whether the order of the
# rows holds is a question to the means and their spread over seeds.

# %% [markdown] lang="zh"
# 一个点是一个种子，穿过它的竖线是一千张测试图像留下的不确定性，虚线是均值。
#
# ## 可以得出什么结论
#
# 第 12 课的 McNemar 检验在同样的测试图像上比较两个训练好的网络。它比较的不是两种结构：同一种结构，换个种子也会不同。
# 所以两种配对都要看。各行的顺序是否成立，要由均值和种子之间的离散程度来回答。

# %%
first, second = tests.values()
between = [pair(one.correct, other.correct) for one in first for other in second]
within = [pair(one.correct, other.correct) for row in (first, second) for one, other in combinations(row, 2)]
for title, pairings in (("two networks", between), ("one network, two seeds", within)):
    print(f"{title:<24}p = {', '.join(f'{pairing.p_value:.3f}' for pairing in pairings)}")
better = sum(pairing.only_second > pairing.only_first for pairing in between)
print(f"The DenseNet is right more often in {better} of {len(between)} pairs.")

# %%
theirs, ours = errors.values()
gain = fmean(theirs) - fmean(ours)
half = T[2 * len(SEEDS) - 2] * ((stdev(theirs) ** 2 + stdev(ours) ** 2) / len(SEEDS)) ** 0.5
low, high = gain - half, gain + half
print(f"The ResNet's mean error less the DenseNet's: {gain:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}.")
is_shown = "is" if abs(gain) > half else "is not"
print(f"The order of the two rows {is_shown} shown by these runs.")

# %% [markdown] lang="en"
# Whatever the last line says, it is about this recipe: these pictures at this size, so many epochs, these two networks.
#
# - It may be said: with so many parameters and this recipe, the errors were such, with this spread.
# - It may not be said that the table of the paper is right or wrong: that is about 300 epochs of CIFAR-10.
# - It may not be said that one family is better: each has one member here, at a rate that was chosen for one of them.
#
# ## Defect: the best of several seeds
#
# Much code trains with several seeds and reports the best run. Or it looks at the test split after each epoch and
# keeps the best of them. Neither number can be compared with a mean. To measure what they are worth, we train one
# small network with several seeds, and look at validation and test after each epoch.

# %% [markdown] lang="zh"
# 无论最后一行说什么，它只关于这个配方：这些图像、这个尺寸、这么多周期、这两个网络。
#
# - 可以说：用这么多参数和这个配方，错误率是这样，离散程度是这样。
# - 不可以说论文的表是对的或错的：那张表说的是在 CIFAR-10 上训练 300 个周期。
# - 不可以说某一族网络更好：这里每一族只有一个成员，学习率还是为其中之一挑选的。
#
# ## 缺陷：取几个种子中最好的
#
# 许多代码用几个种子训练，只报告最好的一次。或者每个周期之后都看一遍测试集，留下其中最好的。
# 这两种数字都不能与均值比较。为了量出它们的水分，我们用几个种子训练一个小网络，每个周期之后都看一遍验证集和测试集。

# %%
course = Recipe().replace({"data.image_size": 28, "data.channels": 1})
data = open_training_data(data_set, course)
splits = {"validation": data.validation, "test": data_set.openers["test"]()}


def look_at_both(network: nn.Module) -> list[float]:
    """The accuracy on validation and on test."""
    accuracies: list[float] = []
    for split, examples in splits.items():
        batches = EvaluationBatches(examples, data.preprocessing, CPU)
        accuracies.append(evaluate_model(network, batches, data_set.class_names, split).accuracy)
    return accuracies


# %%
def watch(seed: int, epochs: int) -> list[list[float]]:
    """What there is to see after each epoch."""
    torch.manual_seed(seed)
    network, seen = build_model("lenet-relu", num_classes=10, in_channels=1), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    batches = TrainingBatches(data, course.replace({"seed": seed}), num_classes=10, device=CPU)
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(network(batch.inputs), batch.targets).backward()
            optimizer.step()
        seen.append(look_at_both(network))
    return seen


# %%
seen = torch.tensor([watch(seed, epochs=2 if QUICK else 7) for seed in range(4 if QUICK else 6)])  # [seeds, epochs, 2]
validation, test = seen[..., 0], seen[..., 1]
honest = test.gather(1, validation.argmax(dim=1, keepdim=True)).squeeze(1)  # the epoch that validation chose
by_test = test.max(dim=1).values  # the epoch that test chose
print(f"mean of the seeds: {100 * honest.mean():.2f} %, spread {100 * honest.std():.2f} points")
print(f"mean, where test chooses the epoch: {100 * by_test.mean():.2f} %")
print(f"the best seed, where test chooses the epoch too: {100 * by_test.max():.2f} %")
assert by_test.mean() >= honest.mean()

# %% [markdown] lang="en"
# Now a contest of the network with itself. The seeds are dealt into two halves, in every way that there is. One half
# reports its mean and the other half its best, as if it were a new method. The histogram shows by how much the new
# method wins.

# %% [markdown] lang="zh"
# 现在让这个网络与自己比赛。把种子分成两半，所有分法都试一遍：一半报告均值，另一半报告最好的，仿佛那是一种新方法。
# 直方图显示“新方法”赢了多少。


# %%
def contest(reported: Tensor) -> list[float]:
    """By how many points the best of one half of the seeds is above the honest mean of the other half."""
    gains: list[float] = []
    for half in combinations(range(len(honest)), len(honest) // 2):
        other_half = [seed for seed in range(len(honest)) if seed not in half]
        gains.append(100 * float(reported[list(half)].max() - honest[other_half].mean()))
    return gains


# %%
gains = {"best seed": contest(honest), "best seed and best epoch by test": contest(by_test)}
for name, points in gains.items():
    share = fmean(won > 0 for won in points)
    print(f"{name}: wins by {fmean(points):.2f} points, in {share:.0%} of the contests")
    assert fmean(points) > 0  # though it is the same network

# %%
smallest = min(row.errors[C10_PLUS] for row in dense[:-1]) - dense[-1].errors[C10_PLUS]
figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
axis.hist(list(gains.values()), bins=12, label=list(gains))
axis.axvline(0, color="tab:gray", linewidth=1)
axis.axvline(smallest, color="tab:red", linestyle=":", label=f"{smallest:.2f} points, the last step of Table 2")
axis.set(xlabel="points by which the network beats itself", ylabel="contests")
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
plt.show()

# %% [markdown] lang="en"
# So a table says for each number how many seeds there were, whether it is a mean, and what chose the epoch.
#
# ## Exercises
#
# ### Exercise 1
#
# The last two rows of Table 2 have errors of 3.62 and 3.46 % on 10,000 test pictures. Can they be told apart by their
# Wilson intervals?

# %% [markdown] lang="zh"
# 所以一张表要对每个数字说明：用了几个种子，是不是均值，周期由什么挑选。
#
# ## 练习
#
# ### 练习 1
#
# 表 2 最后两行在 10,000 张测试图像上的错误率是 3.62 % 和 3.46 %。凭它们的 Wilson 区间能分清吗？

# %% tags=["solution"]
worse, better = (row.errors[C10_PLUS] for row in dense[-2:])
assert (worse, better) == (3.62, 3.46)
bounds = [wilson_interval(round(100 * (100 - error)), 10_000) for error in (worse, better)]
print("accuracies:", " and ".join(map(interval, bounds)))
assert bounds[0][1] > bounds[1][0]  # they overlap, so one test of each does not tell

# %% [markdown] lang="en"
# ### Exercise 2
#
# The spread over seeds is $s$. How many seeds $n$ of each network does it take to see a difference of $d$ between two
# means? The interval of the difference has the half width $1.96 s \sqrt{2 / n}$. Take our small network's spread, and
# the difference of exercise 1.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 种子之间的离散程度是 $s$。要看出两个均值之间大小为 $d$ 的差别，每个网络需要多少个种子 $n$？差别的区间半宽是
# $1.96 s \sqrt{2 / n}$。取我们小网络的离散程度和练习 1 的差别。

# %% tags=["solution"]
s, d = 100 * float(honest.std()), worse - better
needed = math.ceil(2 * (1.96 * s / d) ** 2)
print(f"{needed} seeds of each, where s is {s:.2f} and d is {d:.2f} points")
assert 1.96 * s * math.sqrt(2 / needed) <= d < 1.96 * s * math.sqrt(2 / (needed - 1))

# %% [markdown] lang="en"
# ### Exercise 3
#
# Let the results of seeds be normally distributed. How far above the mean is the best of 3, of 5 and of 10, on
# average, in spreads? Draw them.

# %% [markdown] lang="zh"
# ### 练习 3
#
# 设各个种子的结果服从正态分布。3 个、5 个、10 个之中最好的，平均比均值高出几个标准差？请用随机抽取来回答。

# %% tags=["solution"]
draws = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0))
above = {number: float(draws[:, :number].max(dim=1).values.mean()) for number in (3, 5, 10)}
print({number: round(height, 2) for number, height in above.items()})
assert 0.8 < above[3] < 0.9 < 1.1 < above[5] < 1.2 < 1.5 < above[10] < 1.6
