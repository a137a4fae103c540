"""Items made ahead by a thread: the same items and errors, at the same places, and no thread left behind."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest
import torch
from conftest import small_recipe

from candid.data.ahead import make_ahead
from candid.data.catalog import open_data_set
from candid.data.loading import EvaluationBatches, TrainingBatches, open_training_data
from candid.training.setup import resolve_recipe

CPU = torch.device("cpu")


def ignore(seconds: float) -> None:
    pass


def count(made: list[int], fails_at: int | None = None) -> Generator[int]:
    try:
        for number in range(5):
            if number == fails_at:
                raise ValueError(f"no item {number}")
            made.append(number)
            yield number
    finally:
        made.append(-1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Generator[None]:
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


def test_the_items_are_the_same_and_the_next_one_is_made_meanwhile():
    made: list[int] = []
    for item in make_ahead(count(made), ignore):
        until_s = time.monotonic() + 10
        while len(made) < item + 2 and time.monotonic() < until_s:
            time.sleep(0.001)
        assert made[: item + 2] == [0, 1, 2, 3, 4, -1][: item + 2]
    assert made == [0, 1, 2, 3, 4, -1]


def test_an_error_comes_where_its_item_would_have_come():
    items = make_ahead(count([], fails_at=3), ignore)
    for number in range(3):
        assert next(items) == number
        time.sleep(0.01)  # by which time the error has long happened, behind the third
    with pytest.raises(ValueError, match="no item 3"):
        next(items)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_whoever_leaves_early_ends_the_thread_and_the_items(kind: type[BaseException]):
    made: list[int] = []

    def leave() -> None:
        for _ in make_ahead(count(made), ignore):
            raise kind

    with pytest.raises(kind):
        leave()
    gc.collect()
    assert made[-1] == -1


def test_items_that_are_never_asked_for_are_not_made():
    made: list[int] = []
    items = make_ahead(count(made), ignore)
    items.close()
    del items
    assert made == []


def test_the_wait_is_counted():
    def slowly() -> Generator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    waits: list[float] = []
    for _ in make_ahead(slowly(), waits.append):
        time.sleep(0.2)
    assert waits[0] >= 0.02
    assert sum(waits[1:]) < 0.02


def test_torch_has_one_core_in_the_thread_and_as_many_as_before_elsewhere():
    def number_of_cores() -> Generator[int]:
        while True:
            yield torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        items = make_ahead(number_of_cores(), ignore)
        assert [next(items), next(items), torch.get_num_threads()] == [1, 1, 2]
        items.close()
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(1)


def test_a_program_ends_though_nobody_has_closed_the_items():
    program = (
        "import sys, time, torch\n"
        "from candid.data.ahead import make_ahead\n"
        "def squares():\n"
        "    while True:\n"
        "        yield torch.ones(500, 500) @ torch.ones(500, 500)\n"
        "items = make_ahead(squares(), lambda seconds: None)\n"
        "next(items)\n"
        "raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_batches_say_how_long_they_were_waited_for(pictures):
    data_set = open_data_set(str(pictures))
    recipe = resolve_recipe(small_recipe(pictures), data_set, CPU)
    data = open_training_data(data_set, recipe)
    training = TrainingBatches(data, recipe, 3, CPU)
    list(training.epoch(0))
    first_s = training.waited_s
    list(training.epoch(1))
    assert 0 < first_s < training.waited_s
    evaluation = EvaluationBatches(data.train, data.preprocessing, CPU)
    list(evaluation)
    assert evaluation.waited_s > 0


WITHOUT_A_LOOK = """
import threading, torch
torch.set_num_threads(2)  # which torch notes for later, and asks about when it first computes
from candid.data.ahead import make_ahead
items = make_ahead((number for number in range(2)), lambda seconds: None)
next(items)
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start()
thread.join()
print(later, torch.get_num_threads())
"""


def test_who_computes_for_the_first_time_meanwhile_has_all_cores():
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_LOOK], capture_output=True, text=True, check=True)
    assert done.stdout == "[2] 2\n"
