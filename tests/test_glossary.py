"""The glossary against the texts: its terms are in use where it says, and the words that it rejects nowhere."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from lessons.pages import LANGUAGES, find_lessons, in_language, read_lesson

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
README = {"en": "README.md", "zh": "README.zh.md"}


@dataclass(frozen=True)
class Term:
    """A row of the glossary."""

    english: str
    chinese: str
    rejected: tuple[str, ...]
    place: str
    """The lesson's number or "README"."""


def read_terms() -> list[Term]:
    terms: list[Term] = []
    for line in GLOSSARY.read_text().split("|---|---|---|---|---|---|\n")[1].splitlines():
        english, chinese, rejected, _, _, places = (cell.strip() for cell in line.strip("|").split("|"))
        [place] = re.findall(r"^\[?(\w+)", places)
        terms.append(Term(english, chinese, tuple(rejected.split("、")) if rejected else (), place))
    return terms


TERMS = read_terms()


@cache
def read_text(place: str, language: str) -> str:
    """The words of a lesson or of the README, on one line."""
    if place == "README":
        text = (ROOT / README[language]).read_text()
    else:
        [path] = [path for path in find_lessons() if path.stem.startswith(place)]
        cells = in_language(read_lesson(path), language).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return " ".join(text.split())


def find_rejected(text: str) -> set[str]:
    """Words of the third column in a Chinese text; behind 也叫, "also called", they may stand."""
    return {word for term in TERMS for word in term.rejected if re.search(f"(?<!也叫){word}", text)}


def test_it_is_sorted_and_has_one_word_for_each_idea():
    english, chinese = [term.english for term in TERMS], [term.chinese for term in TERMS]
    assert english == sorted(set(english), key=str.casefold)
    assert len(set(chinese)) == len(chinese)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.english)
def test_a_term_is_where_the_glossary_says(term: Term):
    english = rf"\b{re.escape(term.english)}(?:s|es)?\b"
    assert re.search(english, read_text(term.place, "en"), re.IGNORECASE)
    assert term.chinese in read_text(term.place, "zh")


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", GLOSSARY.read_text()):
        assert (GLOSSARY.parent / target).is_file(), target


@pytest.mark.parametrize("place", [*(path.stem[:2] for path in find_lessons()), "README"])
def test_no_text_has_a_rejected_word(place: str):
    assert find_rejected(read_text(place, "zh")) == set()


def test_no_other_chinese_text_has_a_rejected_word():
    rows = [line.split("|") for line in GLOSSARY.read_text().splitlines() if line.startswith("|")]
    own = "\n".join(cell for row in rows for number, cell in enumerate(row) if number != 3)
    assert find_rejected(own) == set()
    assert find_rejected(repr(LANGUAGES["zh"])) == set()


def test_a_rejected_word_is_found():
    assert find_rejected("最大池化取图片中每个窗口的最大值") == {"池化", "图片"}
    assert find_rejected("汇聚（也叫池化）取图像中每个窗口的最大值") == set()
