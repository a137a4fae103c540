import re
import sys
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.page import HEADING, PAGE, SECTIONS, Section, read_page, run_sections, write_page

QUICK = Section("quick", "Quick", "What quick does.")
SLOW = Section("slow", "Slow", "What slow does.", is_long=True)
BOTH = (QUICK, SLOW)
MEASURED = r"`python -m {}`, \d{{4}}-\d\d-\d\d, took \d+ s; .* cores, .*, torch .*\.\n\n```\n{}\n```\n"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two benchmarks where `python -m` finds them."""
    monkeypatch.chdir(tmp_path)
    write_program("quick", "print('  1.00x\\n## no heading'); print('2.00x')")
    write_program("slow", "print('10.00x')")


def write_program(name: str, code: str) -> None:
    Path(f"{name}.py").write_text(code)


def test_what_is_run_is_replaced_and_the_rest_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    place = tmp_path / "page.md"
    assert run_sections(BOTH, BOTH, place) == []
    assert "  1.00x\n## no heading\n2.00x\n" in capfd.readouterr().out
    write_program("slow", "print('11.00x')")
    write_program("quick", "print('3.00x')")
    assert run_sections(BOTH, [QUICK], place) == []
    quick, slow = MEASURED.format("quick", r"3\.00x"), MEASURED.format("slow", r"10\.00x")
    first, second = rf"## Quick\n\nWhat quick does\.\n\n{quick}", rf"## Slow\n\nWhat slow does\.\n\n{slow}"
    assert re.fullmatch(rf"{re.escape(HEADING)}\n{first}\n{second}", place.read_text())


def test_an_explanation_is_that_of_the_table(tmp_path: Path):
    place = tmp_path / "page.md"
    run_sections(BOTH, BOTH, place)
    changed = Section("slow", "Slow", "Said better.")
    run_sections((QUICK, changed), [QUICK], place)
    assert "## Slow\n\nSaid better.\n\n`python -m slow`" in place.read_text()


def test_a_failure_is_shown_and_the_others_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_program("quick", "print('so far'); raise SystemExit('no more')")
    place = tmp_path / "page.md"
    assert run_sections(BOTH, BOTH, place) == ["quick"]
    text = place.read_text()
    assert re.search(r"^`python -m quick`, .*, \*\*failed with exit code 1\*\* after \d+ s; ", text, flags=re.MULTILINE)
    assert "```\nso far\n```\n" in text
    assert capfd.readouterr().err == "no more\n"
    assert "```\n10.00x\n```\n" in text


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The command line over the two programs."""
    monkeypatch.setattr(page, "SECTIONS", BOTH)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["page"])
    return monkeypatch


def test_the_command_leaves_long_ones_out(command: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    page.main()
    assert set(read_page(page.PAGE, BOTH)) == {"quick"}
    assert re.search(r"^.* cores, .*\nAll in \d+ s; see .*page\.md$", capfd.readouterr().out, flags=re.MULTILINE)
    command.setattr(sys, "argv", ["page", "--long"])
    page.main()
    assert set(read_page(page.PAGE, BOTH)) == {"quick", "slow"}


def test_the_command_fails_where_a_benchmark_does(command: pytest.MonkeyPatch):
    write_program("quick", "raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"^Failed: quick\.$"):
        page.main()


def test_the_command_runs_what_it_is_told(command: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    command.setattr(sys, "argv", ["page", "slow"])
    page.main()
    assert set(read_page(page.PAGE, BOTH)) == {"slow"}
    command.setattr(sys, "argv", ["page", "sloow"])
    with pytest.raises(SystemExit):
        page.main()
    assert capfd.readouterr().err.endswith("error: no benchmark is called 'sloow'; there are quick, slow\n")


def test_the_page_is_what_the_table_makes_of_it():
    measured = read_page(PAGE, SECTIONS)
    assert PAGE.read_text() == write_page(SECTIONS, measured)
    assert "**failed" not in "".join(measured.values())
