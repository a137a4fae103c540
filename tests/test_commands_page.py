import re

import pytest
from conftest import call
from typer.main import get_command

from benchmarks.commands import PAGE, write_page
from candid.cli import app

NAMES = sorted(vars(get_command(app))["commands"])


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


def test_the_page_is_what_the_generator_writes():
    assert PAGE.read_text() == write_page(), f"{PAGE} is out of date; remake it with `make tables`"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_what_the_help_has(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that no option is broken into two lines
    code, said, _ = call(capsys, name, "--help")
    assert code == 0
    section = PAGE.read_text().partition(f"\n## candid {name}\n")[2].partition("\n## ")[0]
    assert options_in(section) | {"--help"} == options_in(said)
    assert section.strip().partition("\n")[0] in said
