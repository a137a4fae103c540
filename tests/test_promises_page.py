import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text()
KEPT, NOT_YET = PAGE.split("## Not yet, or in part")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def rows(part: str) -> list[list[str]]:
    """The cells of each row that has a promise's number."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0].isdigit()]


def functions_of(file: str) -> dict[str, bool]:
    """The names of a file's tests, and whether only `make long` runs all of the test."""
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f.name: "pytest.mark.long" in map(ast.unparse, f.decorator_list) for f in functions}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file: str, name: str):
    assert (ROOT / file).is_file()
    assert name in functions_of(file)


def test_every_promise_has_one_row_and_what_is_kept_a_test_at_every_commit():
    assert sorted(int(row[0]) for row in rows(PAGE)) == list(range(1, 21))
    for _, _, proof, at_every_commit, in_the_long_run, _ in rows(KEPT):
        are_long = [functions_of(file)[name] for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)]
        assert not all(are_long), proof
        assert at_every_commit != in_the_long_run
        assert in_the_long_run != "the same" or not any(are_long), proof


def test_nothing_else_looks_like_a_test():
    assert len(re.findall(r"tests/", PAGE)) == len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", PAGE))
    assert len(rows(NOT_YET)) + len(rows(KEPT)) == len(rows(PAGE))
