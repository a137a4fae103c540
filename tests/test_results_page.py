import shutil
from pathlib import Path

from benchmarks.results import HEADING, FinishedRun, write_page
from candid.recipe import Recipe


def test_runs_of_one_recipe_become_one_row(run: Path, tmp_path: Path):
    other = shutil.copytree(run, tmp_path / "other")
    recipe = Recipe.from_toml(run / "recipe.toml")
    (other / "recipe.toml").write_text(recipe.replace({"seed": 1}).to_toml())
    different = shutil.copytree(run, tmp_path / "different")
    (different / "recipe.toml").write_text(recipe.replace({"training.epochs": 9}).to_toml())
    page = write_page([FinishedRun.read(path) for path in (run, other, different)])
    assert page.startswith(HEADING)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.removeprefix(HEADING).splitlines()]
    assert [row[0] for row in rows] == ["lenet-relu", "lenet-relu"]
    assert [row[3] for row in rows] == ["0, 1", "0"]
    assert [row[6] for row in rows] == ["4", "9"]
    assert "± 0.00 %" in rows[0][4]
    assert "±" not in rows[1][4]
    assert all(len(row) == 11 for row in rows)
    assert rows[0][5] == rows[1][5]  # more seeds on the same pictures do not narrow the interval
