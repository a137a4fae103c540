import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


PROMISE = re.compile(
    r"^\*\*(\d+)\.\*\* .+\n\n- Proved by (.+)\n- In `make test`: (.+)\n- In `make long`: (.+)\n"
    r"(?:- Last long run: (.+)\n)?(?=\n|$)",
    re.MULTILINE,
)


def functions_of(file: str) -> dict[str, bool]:
    """The names of a file's tests, and whether only `make long` runs all of the test."""
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f.name: "pytest.mark.long" in map(ast.unparse, f.decorator_list) for f in functions}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file: str, name: str):
    assert (ROOT / file).is_file()
    assert name in functions_of(file)


def test_every_promise_stands_there_once_and_has_a_test_at_every_commit():
    assert [int(number) for number in re.findall(r"^\*\*(\d+)", PAGE, re.MULTILINE)] == list(range(1, 21))
    promises = PROMISE.findall(PAGE)
    assert len(promises) == 20
    for _, proof, at_every_commit, in_the_long_run, last_long_run in promises:
        are_long = [functions_of(file)[name] for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)]
        assert not all(are_long), proof
        assert at_every_commit != in_the_long_run
        assert in_the_long_run != "the same" or not any(are_long), proof
        assert in_the_long_run.startswith("the same") != bool(last_long_run), proof


def test_nothing_else_looks_like_a_test():
    assert len(re.findall(r"tests/", PAGE)) == len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", PAGE))
