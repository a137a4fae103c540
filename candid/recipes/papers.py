"""Recipes of the papers, as their texts and their authors' code give them: a function and a table for each paper.

A recipe is called papers/NETWORK-DATA, with -augmented behind it where the paper shifts and mirrors pictures ("+").
"""

from collections.abc import Callable, Mapping
from functools import partial

from candid.paper_tables import COLUMNS, DATA_SETS, DENSENET_TABLE_2, DENSENET_TABLE_3, Errors
from candid.recipe import Recipe
from candid.recipe_parts import Augmentation, Data, Model, Optimizer, Schedule, Training
from candid.recipes.shipped import Group, Shipped, describe

ITERATIONS_PER_EPOCH = 352
"""Of 45,000 pictures in batches of 128."""
NOT_RUN = "The errors are those in print, on test; nothing of it was run here."
EVERYWHERE = f"What a shift brings in is black, where much of the papers' code has the mean colour. {NOT_RUN}"


def densenet(network: str, data: str, augmented: bool) -> Recipe:
    """Huang, Liu, van der Maaten, Weinberger 2017 (arXiv:1608.06993), section 4.2 and Table 2.

    SGD with Nesterov momentum 0.9 and weight decay 1e-4, batch 64, 300 epochs (SVHN 40), rate 0.1 divided by 10 after
    50 % and 75 %; dropout 0.2 where pictures are not augmented. All of CIFAR's 50,000 training pictures are trained
    on and the last epoch counts; of the 604,388 of SVHN, 6,000 are held out and choose.

    Departure: SVHN is normalised like CIFAR; the paper only divides its pixels by 255.
    """
    is_svhn = data == "svhn-extra"
    return Recipe(
        data=Data(name=data, validation=6_000 if is_svhn else 0),
        augmentation=_shifts(augmented),
        model=Model(name=network, dropout=0.0 if augmented else 0.2),
        training=Training(epochs=40 if is_svhn else 300, batch_size=64),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=True, weight_decay=1e-4),
        schedule=_steps(0.5, 0.75),
    )


def densenet_imagenet(network: str) -> Recipe:
    """Huang, Liu, van der Maaten, Weinberger 2017 (arXiv:1608.06993), section 4.2 and Table 3.

    SGD with Nesterov momentum 0.9 and weight decay 1e-4, batch 256, 90 epochs, rate 0.1 divided by 10 after 30 and 60;
    windows of at least 8 % of a picture, mirrored, with the colours of fb.resnet.torch. DenseNet-161 is of an earlier
    version of the paper: batch 128, 100 epochs, divided once more after 90. All training pictures are trained on.

    candid cannot download ImageNet: bring its pictures as FOLDER/train/CLASS and FOLDER/val/CLASS and add
    --data-dir FOLDER; val becomes the test split.

    Departures: no noise along the principal components of colour; test pictures are scaled to 224 px at the shorter
    side, in the paper the centre is cut from 256 px.
    """
    is_largest = network == "densenet161"
    return Recipe(
        data=Data(name="imagenet", image_size=224, validation=0),
        augmentation=Augmentation(random_resized_crop=0.08, mirror=True, color_jitter=0.4),
        model=Model(name=network),
        training=Training(epochs=100 if is_largest else 90, batch_size=128 if is_largest else 256),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=True, weight_decay=1e-4),
        schedule=_steps(30, 60, 90) if is_largest else _steps(30, 60),
    )


def resnet(network: str, data: str, augmented: bool) -> Recipe:
    """He, Zhang, Ren, Sun 2016 (arXiv:1512.03385), section 4.2 and Table 6.

    SGD with momentum 0.9 (not Nesterov's) and weight decay 1e-4, batch 128, 64,000 iterations, rate 0.1 divided by 10
    after 32,000 and 48,000: 182 epochs of 45,000 pictures, with 5,000 held out. From 110 layers on, the rate warms up.
    The error of 110 layers is the mean of five runs, the best of which has 6.43 %.

    Departures: 64 iterations more, which end an epoch; the rate rises linearly over the first 400 iterations, where
    the paper keeps 0.01 until the training error is below 80 %, about as long; channels are normalised by their mean
    and standard deviation, where the paper removes the mean of each pixel. For the errors in print the paper may have
    trained on all 50,000 pictures.
    """
    warmup = 400 if network in ("resnet110", "resnet1202") else 0
    return _residual(f"{network}-cifar", data, augmented, batch_size=128, warmup=warmup)


def preact_resnet(network: str, data: str, augmented: bool) -> Recipe:
    """He, Zhang, Ren, Sun 2016 (arXiv:1603.05027), appendix and Tables 3 and 4; medians of five runs.

    As ResNet: SGD with momentum 0.9 (not Nesterov's) and weight decay 1e-4, batch 128, 64,000 iterations, rate 0.1
    divided by 10 after 32,000 and 48,000: 182 epochs of 45,000 pictures. All depths warm up for 400 iterations.
    `-batch64` is the row with batches of 64, from the authors' later code, which others quote.

    Departures: 64 iterations more, which end an epoch; the rate rises linearly over the first 400 iterations, where
    the paper keeps 0.01; batches of 64 get the epochs of batches of 128, as nothing else is said. The errors without
    augmentation are those that Huang et al. 2017 (arXiv:1608.06993, Table 2) got, who do not say how.
    """
    model, _, small_batch = network.partition("-batch")
    return _residual(model, data, augmented, batch_size=int(small_batch or 128), warmup=400)


def stochastic_depth(network: str, data: str, augmented: bool) -> Recipe:
    """Huang, Sun, Liu, Sedra, Weinberger 2016 (arXiv:1603.09382), section 4, and the authors' code.

    SGD with Nesterov momentum 0.9 and weight decay 1e-4, batch 128, 500 epochs, rate 0.1 divided by 10 after 250 and
    375; of CIFAR's training pictures 5,000 are held out and choose. `constant-depth` is the baseline, which keeps all
    layers.

    Departures: 1202 layers are trained as 110; the baseline's shortcuts skip every second pixel, where the authors'
    average.
    """
    model = "resnet110-cifar" if network == "constant-depth-resnet110" else network
    return Recipe(
        data=Data(name=data, validation=5_000),
        augmentation=_shifts(augmented),
        model=Model(name=model),
        training=Training(epochs=500, batch_size=128),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=True, weight_decay=1e-4),
        schedule=_steps(250, 375),
    )


def wide_resnet(network: str, data: str, augmented: bool) -> Recipe:
    """Zagoruyko, Komodakis 2016 (arXiv:1605.07146v4), section 3 and Tables 5 and 6; medians of five runs.

    SGD with Nesterov momentum 0.9 and weight decay 5e-4, batch 128. CIFAR: 200 epochs, rate 0.1 times 0.2 after 60,
    120 and 160; all 50,000 pictures are trained on. SVHN: 160 epochs, rate 0.01 times 0.1 after 80 and 120.
    `-dropout` is 0.3 on CIFAR and 0.4 on SVHN. Earlier versions of the paper whiten the pictures and have larger
    errors (28-10: 4.17 and 20.50 %), which others quote.

    Departures: what a shift brings in is black, in the paper a reflection; SVHN is normalised like CIFAR, where the
    paper only divides its pixels by 255.
    """
    model, _, _ = network.partition("-dropout")
    is_svhn, has_dropout = data == "svhn-extra", network != model
    return Recipe(
        data=Data(name=data, validation=0),
        augmentation=_shifts(augmented),
        model=Model(name=model, dropout=(0.4 if is_svhn else 0.3) if has_dropout else 0.0),
        training=Training(epochs=160 if is_svhn else 200, batch_size=128),
        optimizer=Optimizer(name="sgd", rate=0.01 if is_svhn else 0.1, nesterov=True, weight_decay=5e-4),
        schedule=_steps(80, 120) if is_svhn else _steps(60, 120, 160, factor=0.2),
    )


def resnext(network: str, data: str, augmented: bool) -> Recipe:
    """Xie, Girshick, Dollár, Tu, He 2017 (arXiv:1611.05431), section 5.3 and appendix A; means of ten runs.

    SGD with momentum 0.9 and weight decay 5e-4, batch 128, 300 epochs, rate 0.1 divided by 10 after 150 and 225; all
    50,000 pictures are trained on. That the momentum is Nesterov's is from the code that the paper names,
    fb.resnet.torch.
    """
    return Recipe(
        data=Data(name=data, validation=0),
        augmentation=_shifts(augmented),
        model=Model(name=network),
        training=Training(epochs=300, batch_size=128),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=True, weight_decay=5e-4),
        schedule=_steps(150, 225),
    )


def fractalnet(network: str, data: str, augmented: bool) -> Recipe:
    """Larsson, Maire, Shakhnarovich 2017 (arXiv:1605.07648), section 4 and Table 1, with drop-path and dropout.

    SGD with momentum 0.9, batch 100, 400 epochs (SVHN 20), rate 0.02 divided by 10 whenever the epochs that are left
    have halved. The paper names no weight decay, so there is none.

    Departures: the rate falls four times, where halving has no end; the data set's usual number of training pictures
    is held out and chooses, of which the paper says nothing.
    """
    return Recipe(
        data=Data(name=data),
        augmentation=_shifts(augmented),
        model=Model(name=network),
        training=Training(epochs=20 if data == "svhn-extra" else 400, batch_size=100),
        optimizer=Optimizer(name="sgd", rate=0.02, nesterov=False, weight_decay=0.0),
        schedule=_steps(1 - 1 / 2, 1 - 1 / 4, 1 - 1 / 8, 1 - 1 / 16),
    )


def highway(network: str, data: str, augmented: bool) -> Recipe:
    """Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 3.3.2, and the authors' Caffe files.

    SGD with Nesterov momentum 0.9 and weight decay 1e-3, which biases are free of, batch 100, 200,000 iterations
    (400 epochs), rate 0.025 divided by 10 after 100,000, 150,000 and 175,000; pictures are shifted by up to 8 px and
    mirrored, and all 50,000 trained on. The errors are means over runs.

    Departures: pictures are normalised, in the paper globally contrast normalised; biases learn at the common rate, in
    the files at twice that; the head decays like all weights, in the files ten times as much.
    """
    return Recipe(
        data=Data(name=data, validation=0),
        augmentation=_shifts(augmented, padding=8),
        model=Model(name=network),
        training=Training(epochs=400, batch_size=100),
        optimizer=Optimizer(name="sgd", rate=0.025, nesterov=True, weight_decay=1e-3, decay_norms_and_biases=False),
        schedule=_steps(200, 300, 350),
    )


def all_cnn(network: str, data: str, augmented: bool) -> Recipe:
    """Springenberg, Dosovitskiy, Brox, Riedmiller 2015 (arXiv:1412.6806), section 3.1.

    SGD with momentum 0.9 and weight decay 1e-3, 350 epochs, rate divided by 10 after 200, 250 and 300; with
    augmentation, pictures are shifted by up to 5 px and mirrored. All 50,000 pictures are trained on.

    Departures: pictures are normalised, in the paper whitened and contrast normalised. The paper takes the best of the
    rates 0.25, 0.1, 0.05 and 0.01 without saying which, and does not print the batch: 0.05 and 128 here.
    """
    return Recipe(
        data=Data(name=data, validation=0),
        augmentation=_shifts(augmented, padding=5),
        model=Model(name=network),
        training=Training(epochs=350, batch_size=128),
        optimizer=Optimizer(name="sgd", rate=0.05, nesterov=False, weight_decay=1e-3),
        schedule=_steps(200, 250, 300),
    )


def _residual(model: str, data: str, augmented: bool, *, batch_size: int, warmup: int) -> Recipe:
    """What ResNet and its form with pre-activation share; `warmup` in iterations of batches of 128."""
    return Recipe(
        data=Data(name=data, validation=5_000),
        augmentation=_shifts(augmented),
        model=Model(name=model),
        training=Training(epochs=182, batch_size=batch_size),
        optimizer=Optimizer(name="sgd", rate=0.1, nesterov=False, weight_decay=1e-4),
        schedule=_steps(_in_epochs(32_000), _in_epochs(48_000), warmup=_in_epochs(warmup)),
    )


def _in_epochs(iterations: int) -> float:
    return round(iterations / ITERATIONS_PER_EPOCH, 3)  # to a third of an iteration, which rounds to the whole one


def _shifts(augmented: bool, padding: int = 4) -> Augmentation:
    return Augmentation(crop_padding=padding, mirror=True) if augmented else Augmentation()


def _steps(*milestones: float, factor: float = 0.1, warmup: float = 0.0) -> Schedule:
    return Schedule(name="multi-step", warmup=warmup, milestones=milestones, factor=factor)


def _group(
    title: str, train: Callable[[str, str, bool], Recipe], rows: Mapping[str, Errors], plain_source: str = "the paper"
) -> Group:
    """A recipe for each error that a paper prints, or another one, `plain_source`, for what is not augmented."""
    recipes: dict[str, Shipped] = {}
    for network, errors in rows.items():
        for column, error in zip(COLUMNS, errors, strict=True):
            if error is not None:
                data, augmented = DATA_SETS[column.removesuffix("+")], column.endswith("+")
                name = f"papers/{network}-{data.removesuffix('-extra')}{'-augmented' if augmented else ''}"
                source = "the paper" if augmented else plain_source
                recipes[name] = Shipped(partial(train, network, data, augmented), f"{error:.2f} % error in {source}")
    return Group(title, f"{describe(train)}\n\n{EVERYWHERE}", recipes)


def _imagenet_group() -> Group:
    results = {row.model: f"{row.top1[0]:.2f} % top-1 error in the paper" for row in DENSENET_TABLE_3}
    results |= {"densenet161": "no error in the paper's last version"}
    recipes = {
        f"papers/{network}-imagenet": Shipped(partial(densenet_imagenet, network), result)
        for network, result in results.items()
    }
    return Group("DenseNet on ImageNet", f"{describe(densenet_imagenet)}\n\n{NOT_RUN}", recipes)


# Columns: C10, C10+, C100, C100+, SVHN.
# fmt: off
RESNET: dict[str, Errors] = {
    "resnet20": (None, 8.75, None, None, None),
    "resnet32": (None, 7.51, None, None, None),
    "resnet44": (None, 7.17, None, None, None),
    "resnet56": (None, 6.97, None, None, None),
    "resnet110": (None, 6.61, None, None, None),
    "resnet1202": (None, 7.93, None, None, None),
}
PREACT_RESNET: dict[str, Errors] = {
    "preact-resnet110": (None, 6.37, None, None, None),
    "preact-resnet164": (11.26, 5.46, 35.58, 24.33, None),
    "preact-resnet1001": (10.56, 4.92, 33.47, 22.71, None),
    "preact-resnet1001-batch64": (None, 4.62, None, None, None),
}
STOCHASTIC_DEPTH: dict[str, Errors] = {  # on SVHN the paper has 152 layers, which the zoo has not
    "constant-depth-resnet110": (13.63, 6.41, 44.74, 27.22, None),
    "stochastic-depth-resnet110": (11.66, 5.23, 37.80, 24.58, None),
    "stochastic-depth-resnet1202": (None, 4.91, None, None, None),
}
WIDE_RESNET: dict[str, Errors] = {
    "wrn-16-4": (None, 5.02, None, 24.03, 1.85),
    "wrn-16-4-dropout": (None, 5.24, None, 23.91, 1.64),
    "wrn-16-8": (None, 4.27, None, 20.43, None),
    "wrn-28-10": (None, 4.00, None, 19.25, None),
    "wrn-28-10-dropout": (None, 3.89, None, 18.85, None),
    "wrn-40-4": (None, 4.53, None, 21.18, None),
}
RESNEXT: dict[str, Errors] = {
    "resnext29-8x64d": (None, 3.65, None, 17.77, None),
    "resnext29-16x64d": (None, 3.58, None, 17.31, None),
}
FRACTALNET: dict[str, Errors] = {"fractalnet": (7.33, 4.60, 28.20, 23.73, 1.87)}
HIGHWAY: dict[str, Errors] = {"highway19": (None, 7.69, None, 32.39, None)}
ALL_CNN: dict[str, Errors] = {"all-cnn-c": (9.08, 7.25, None, 33.71, None)}
# fmt: on

GROUPS = (
    _group(
        "DenseNet on CIFAR and SVHN",
        densenet,
        {row.model: row.errors for row in DENSENET_TABLE_2 if row.model.startswith("densenet")},
    ),
    _imagenet_group(),
    _group("ResNet", resnet, RESNET),
    _group("ResNet with pre-activation", preact_resnet, PREACT_RESNET, plain_source="Huang et al. 2017"),
    _group("Stochastic depth", stochastic_depth, STOCHASTIC_DEPTH),
    _group("Wide ResNet", wide_resnet, WIDE_RESNET),
    _group("ResNeXt", resnext, RESNEXT),
    _group("FractalNet", fractalnet, FRACTALNET),
    _group("Highway network", highway, HIGHWAY),
    _group("All-CNN", all_cnn, ALL_CNN),
)
