"""The pages of docs/: what they tell to do is done, their links lead somewhere, and a site can be built of them."""

import gzip
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import markdown
import pytest
import torch
import typer.main
from conftest import draw, make_pictures
from documents import find_blocks, patched, run_command
from torchvision.models import resnet18

import candid
from candid.cli import app
from candid.recipe import list_keys
from candid.recipes import find_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FOLLOWED = ["index.md", "python.md", "weights.md", *(page for page in PAGES if page.startswith("guides/"))]
IN_THE_TREE = "\n## With a name\n"
"""From where on a guide changes the tree."""


def read_page(page: str) -> str:
    """A page's text, with what it includes."""
    text = (DOCS / page).read_text()
    return re.sub(
        r'^--8<-- "([\w.]+)(?::\w+)?"$', lambda found: (ROOT / found[1]).read_text(), text, flags=re.MULTILINE
    )


@pytest.fixture
def place(here: Path) -> Path:
    """A folder as the guides suppose it."""
    make_pictures(here / "pictures", per_class=10)
    draw("cross", 99, side=60).save(here / "holiday.jpg")
    (here / "names.txt").write_text("circle\ncross\nstripes\n")
    (here / "new-pictures").mkdir()
    draw("circle", 98).save(here / "new-pictures" / "1.png")
    return here


def shortened(code: str) -> str:
    """The code with what takes long made short, and without data that would be downloaded."""
    code = re.sub(r"(--epochs |training\.epochs=)\d+", r"\g<1>2", code)
    code = re.sub(r"^candid train$", "candid train --epochs 2", code, flags=re.MULTILINE)
    code = re.sub(r"^(candid (?:train|plan) papers/\S+)", r"\1 --data pictures", code, flags=re.MULTILINE)
    return code.replace("--max-time 30m", "--max-time 0.001s").replace("data.image_size=128", "data.image_size=32")


def run_apart(*arguments: str, cwd: Path, tree: Path = ROOT) -> str:
    """What Python prints in a process of its own, with the candid of a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_line(line: str, place: Path) -> None:
    """A line for the shell; what sets the environment up is left to the tests of README and CONTRIBUTING."""
    if line in ("make train", ". .venv/bin/activate"):
        return
    if "--memory" in line or "resnet18" in line:  # a budget that this process exceeds by now, or what it would keep
        run_apart("-m", *line.split(), cwd=place)
    else:
        run_command(line)


def run_python(code: str, place: Path) -> None:
    if "limits.memory" in code or "resnet18" in code:
        run_apart("-c", code, cwd=place)
    else:
        exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})


def run_job(script: str, place: Path) -> None:
    """A script for a queue that runs each job at once; the time of the first job is over after a step."""
    programs = place / "programs"
    programs.mkdir()
    for name, command in (("candid", f"'{sys.executable}' -m candid \"$@\""), ("sbatch", 'bash "$1"')):
        (programs / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (programs / name).chmod(0o755)
    (place / "long.sh").write_text(script.replace("--epochs 2 --max-time 110m", "--epochs 2 --max-time 0.001s"))
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "long.sh"], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resumed at step 1," in done.stderr
    assert (place / "runs" / "chain" / "result.json").is_file()


@pytest.mark.parametrize("page", FOLLOWED)
def test_it_can_be_followed_to_the_letter(page: str, place: Path):
    text = (DOCS / page).read_text().partition(IN_THE_TREE)[0]
    if "resnet18-f37072fd.pth" in text:
        torch.save(resnet18().state_dict(), place / "resnet18-f37072fd.pth")
    for block in find_blocks(text):
        code = shortened(block.content)
        if block.language == "sh":
            for line in code.splitlines():
                run_line(line, place)
        elif block.language == "python":
            run_python(code, place)
        elif block.language == "bash":
            run_job(code, place)
    for name in re.findall(r"`((?:runs|audits)/[\w./-]+)`", text):
        assert (place / name).exists(), f"{name} is named but not made"
    for name in re.findall(r"`([\w-]+\.(?:csv|html|json|png|toml))`", text):
        assert any(place.rglob(name)), f"{name} is named but not made"


def test_what_is_shown_for_several_processes_is_understood():
    text = (DOCS / "guides" / "resume-and-clusters.md").read_text()
    launcher, arguments = re.findall(r"^(torchrun .*) -m candid train (.*)$", text, flags=re.MULTILINE)[0]
    assert launcher == "torchrun --nproc-per-node 2"  # run in tests/training/test_ranks.py
    typer.main.get_command(app).commands["train"].make_context("train", arguments.split())


FINE_TUNING = candid.Recipe().override(["model.weights=FILE", "model.freeze=backbone"])
"""A recipe in which every key may be set."""
PROSE = [*(f"docs/{page}" for page in PAGES if not page.startswith("lessons/")), "README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PROSE)
def test_what_its_sentences_tell_to_type_exists(page: str):
    keys = list_keys()
    key = rf"(?:{'|'.join({key.partition('.')[0] for key in keys if '.' in key})})\.[a-z_]+"
    for code in re.findall(r"`([^`]+)`", without_code((ROOT / page).read_text())):
        match code.split():
            case ["candid", name, *arguments] if name != "COMMAND":
                check_command(name, arguments)
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), code
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), code
            case [name, *_] if called := re.match(r"candid(?:\.\w+)+(?=\(|$)", name):
                assert pkgutil.resolve_name(called[0]), code
            case [assignment] if re.fullmatch(rf"{key}=\S+", assignment):
                FINE_TUNING.override([assignment])
            case [name] if re.fullmatch(key, name) and not (ROOT / "candid" / name.replace(".", "/")).exists():
                assert name in keys


def check_command(name: str, arguments: list[str]) -> None:
    """A command of candid in a sentence, where arguments may be left out or be called by what they are."""
    command = typer.main.get_command(app).commands[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in arguments if word.startswith("-")} <= options, arguments
    recipes = [find_recipe(word) for word in arguments if word.startswith("papers/")]
    assignments = [value for option, value in pairwise(arguments) if option == "--set" and value != "PART.KEY=VALUE"]
    for recipe in recipes or [FINE_TUNING]:
        recipe.override(assignments)


def write_idx(path: Path, values: torch.Tensor) -> None:
    """uint8 of any shape in MNIST's format."""
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes()))


def test_a_data_set_gets_a_name(here: Path):
    text = (DOCS / "guides" / "adding-a-data-set.md").read_text().partition(IN_THE_TREE)[2]
    printing, entry, commands, _ = find_blocks(text)
    (here / "kmnist").mkdir()
    for split, number in (("train", 600), ("t10k", 100)):
        labels = torch.arange(number, dtype=torch.uint8) % 10
        write_idx(here / "kmnist" / f"{split}-labels-idx1-ubyte.gz", labels)
        write_idx(here / "kmnist" / f"{split}-images-idx3-ubyte.gz", labels[:, None, None].expand(-1, 28, 28) * 25)
    printed = run_apart("-c", printing.content, cwd=here)
    tree = here / "tree"
    shutil.copytree(ROOT / "candid", tree / "candid", ignore=shutil.ignore_patterns("__pycache__"))
    catalog = tree / "candid" / "data" / "catalog.py"
    smaller = entry.content.replace("60_000", "600").replace("10_000", "100")
    lines = "".join(f"+{line}\n" for line in printed.splitlines())
    catalog.write_text(patched(catalog.read_text(), smaller.replace("+        SHA-256\n", lines)))
    listing, training = commands.content.splitlines()
    assert re.search(r"^ *kmnist +700 ", run_apart("-m", *listing.split(), cwd=here, tree=tree), flags=re.MULTILINE)
    run_apart("-m", *training.split(), cwd=here, tree=tree)
    assert json.loads((here / "runs" / "kmnist" / "result.json").read_text())["test_images"] == 100


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What links to a page may name behind #: its headings, as sites and GitHub write them."""
    text = read_page(path.relative_to(DOCS).as_posix()) if path.is_relative_to(DOCS) else path.read_text()
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), "README.md", "CONTRIBUTING.md"])
def test_its_links_and_anchors_lead_somewhere(page: str):
    text = re.sub(r"`[^`\n]*`", "", without_code((ROOT / page).read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            target, _, anchor = link.partition("#")
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


def test_every_page_is_in_the_navigation_once():
    assert sorted(pages_in(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])) == PAGES


def pages_in(navigation: list[dict[str, str | list]]) -> Iterator[str]:
    """The pages that a part of the navigation leads to."""
    for item in navigation:
        for value in [item] if isinstance(item, str) else item.values():
            if isinstance(value, str):
                yield from (path.relative_to(DOCS).as_posix() for path in DOCS.glob(value) if path.suffix == ".md")
            else:
                yield from pages_in(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds, in a copy of the tree; a warning ends it."""
    tree = tmp_path_factory.mktemp("site")
    for name in ("docs", "candid", "lessons", "overrides"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("zensical.toml", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, tree / name)
    command = re.search(r"^docs:.*\n\t\$\(BIN\)/python (.*)$", (tree / "Makefile").read_text(), flags=re.MULTILINE)
    assert command
    done = subprocess.run([sys.executable, *command[1].split()], cwd=tree, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "No issues found\n")
    return tree / "site"


def built(page: str) -> str:
    """What a page's file is called in the site."""
    return re.sub(r"README\.md$", "index.md", page).removesuffix(".md") + ".html"


def test_every_page_is_built_and_its_links_lead_to_files(site: Path):
    texts = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    expected = set(map(built, PAGES))
    assert set(texts) == expected | {"404.html"}
    for page in expected:
        for link in re.findall(r'(?:href|src)="([^"#?:]+)["#?]', texts[page]):
            assert ((site / page).parent / unquote(link)).exists(), f"{page}: {link}"


def test_every_public_name_and_every_key_of_a_recipe_is_on_the_page_of_names(site: Path):
    described = set(re.findall(r'id="candid\.([\w.]+)"', (site / "python.html").read_text()))
    assert set(candid.__all__) <= {name.rpartition(".")[2] for name in described}
    keys = [key.split(".") for key in list_keys() if "." in key]
    assert {f"recipe_parts.{part.capitalize()}.{name}" for part, name in keys} <= described


def test_nothing_is_fetched_from_elsewhere(site: Path):
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?!a\b)[^>]*\b(?:src|href|srcset)="((?:https?:)?//[^"]*)"', path.read_text())
        assert not loaded, path
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", path.read_text()), path


def test_every_page_says_its_language(site: Path):
    for page in PAGES:
        language = "zh-Hans" if page.startswith("lessons/zh/") or page == "index.zh.md" else "en"
        assert re.findall(r'<div lang="([^"]*)"', (site / built(page)).read_text()) == [language], page


def test_every_formula_is_drawn(site: Path):
    for page in (page for page in PAGES if page.startswith("lessons/")):
        text = re.sub(r"`[^`\n]*`|^ {4}.*", "", without_code((DOCS / page).read_text()), flags=re.MULTILINE)
        formulas = re.findall(r"\$\$[^$]+\$\$|\$[^$]+\$", text)
        assert (site / built(page)).read_text().count("<math") == len(formulas), page


def test_formulas_become_mathml_and_code_stays():
    text = "With $k = 12$ and `$HOME`, $5:\n\n$$a_i \\, \\frac{b}{2}$$\n"
    page = markdown.markdown(text, extensions=["lessons.formulas"])
    assert re.findall(r'<math [^>]*display="(\w+)"', page) == ["inline", "block"]
    assert "<mi>k</mi>" in page
    assert "<mfrac>" in page
    assert "<code>$HOME</code>, $5:" in page
