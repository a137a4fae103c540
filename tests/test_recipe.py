import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.recipe import Recipe, RecipeError, list_keys


def problem(values: dict) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"training": {"epochs": -3}}, "training.epochs is -3; it must be above 0."),
        ({"training": {"epochs": "ten"}}, "training.epochs is 'ten'; it must be a whole number."),
        ({"training": {"epochs": 2.5}}, "training.epochs is 2.5; it must be a whole number."),
        ({"training": {"epochs": True}}, "training.epochs is True; it must be a whole number."),
        ({"training": 3}, "training is 3; it must be a table of keys; write part.key = value."),
        ({"seed": -1}, "seed is -1; it must be at least 0."),
        ({"data": {"channels": 2}}, "data.channels is 2; it must be 0, 1 or 3."),
        ({"data": {"validation": -5}}, "data.validation is -5; it must be at least 0."),
        ({"optimizer": {"rate": float("nan")}}, "optimizer.rate is nan; it must be a finite number."),
        (
            {"data": {"validation": 10.5}},
            "data.validation is 10.5; it must be a whole number of examples, or a share below 1.",
        ),
        (
            {"data": {"fit": "crp"}},
            "data.fit is 'crp'; it must be 'crop', 'pad' or 'squash'. Did you mean crop?",
        ),
        (
            {"training": {"batchsize": 4}},
            "training.batchsize is not a key of a recipe. Did you mean training.batch_size?",
        ),
        ({"zzz": 1}, "zzz is not a key of a recipe. `candid recipes default` shows all keys."),
        (
            {"schedule": {"name": "cosin"}},
            "schedule.name is 'cosin'; it must be 'constant', 'multi-step', 'cosine', 'one-cycle' or 'plateau'. "
            "Did you mean cosine?",
        ),
        ({"schedule": {"milestones": 3}}, "schedule.milestones is 3; it must be a list of numbers."),
        (
            {"training": {"epochs": 5}, "schedule": {"warmup": 5}},
            "schedule.warmup is 5.0; it must be below training.epochs (5). Train longer or warm up for less.",
        ),
        (
            {"training": {"micro_batch_size": 256}},
            "training.micro_batch_size is 256; it must be at most training.batch_size (64).",
        ),
        (
            {"optimizer": {"momentum": 0.0}},
            "optimizer.nesterov is true with momentum 0; it must be false, or momentum above 0.",
        ),
        (
            {"augmentation": {"crop_padding": 4, "random_resized_crop": 0.5}},
            "augmentation.crop_padding is 4 and augmentation.random_resized_crop is 0.5; "
            "a picture is cut once, so set one of them to 0.",
        ),
        (
            {"augmentation": {"mirror_alternates": True}},
            "augmentation.mirror_alternates is true, but augmentation.mirror is false; set both, or neither.",
        ),
    ],
)
def test_nonsense_is_refused_in_words(values: dict, text: str):
    assert problem(values) == text


def test_all_problems_are_told_together():
    values = {"seed": 1.5, "training": {"epochs": 0, "precision": "fp8"}, "optimzer": {"rate": 1}}
    assert problem(values) == (
        "seed is 1.5; it must be a whole number.\n"
        "training.epochs is 0; it must be above 0.\n"
        "training.precision is 'fp8'; it must be 'auto', 'fp32', 'bf16' or 'fp16'.\n"
        "optimzer is not a key of a recipe. Did you mean optimizer?"
    )


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().training.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("training.epochs", "--set training.epochs has no value; write --set training.epochs=VALUE."),
        ("training.epochs=", "--set training.epochs= has no value; write --set training.epochs=VALUE."),
        ("", "--set  has no value; write --set part.key=VALUE."),
        (
            "training.epoch=3",
            "training.epoch is not a key of a recipe. Did you mean training.epochs?",
        ),
        ("training.epochs=-1", "training.epochs is -1; it must be above 0."),
    ],
)
def test_a_wrong_assignment_is_refused_in_words(assignment: str, text: str):
    with pytest.raises(RecipeError) as caught:
        Recipe().override([assignment])
    assert str(caught.value) == text


def test_assignments_take_words_numbers_truths_and_lists():
    recipe = Recipe().override(
        ["schedule.name=multi-step", "schedule.milestones=[30, 60]", "augmentation.mirror=true", "optimizer.rate=1e-3"]
    )
    assert recipe.schedule.name == "multi-step"
    assert recipe.schedule.milestones == (30, 60)
    assert recipe.augmentation.mirror is True
    assert recipe.optimizer.rate == 1e-3


def test_every_key_can_be_set_to_its_own_value():
    recipe = Recipe().replace({"data.validation": 0.2})
    values = recipe.model_dump()
    for key in list_keys():
        part, _, field = key.rpartition(".")
        assert recipe.replace({key: values[part][field] if part else values[field]}) == recipe


@given(
    epochs=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1e3),
    milestones=st.lists(st.floats(0.01, 500), max_size=5),
    name=st.text(max_size=30).filter(lambda text: text.isprintable()),
)
def test_toml_gives_the_same_recipe_back(epochs: int, rate: float, milestones: list[float], name: str):
    recipe = Recipe().replace(
        {"training.epochs": epochs, "optimizer.rate": rate, "schedule.milestones": milestones, "data.name": name}
    )
    assert Recipe.from_mapping(tomllib.loads(recipe.to_toml())) == recipe


def test_a_file_that_is_no_toml_is_refused_in_words(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs: 3\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(path)
    assert str(caught.value) == (
        f"{path} is not a TOML file (Expected '=' after a key in a key/value pair (at line 1, column 7)). "
        "Choose one that `candid recipes NAME` prints as a pattern."
    )
