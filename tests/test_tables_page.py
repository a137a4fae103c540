from dataclasses import replace

import pytest

from benchmarks.tables import PAGE, TABLE, describe_header, describe_network, link, write_page, write_table
from candid.models import REGISTRY, find_variant
from candid.zoo import describe_family, read_entries

REMAKE = "; remake it with `make tables`"
ENTRIES = {entry.name: entry for entry in read_entries()}


def test_the_table_has_the_networks_of_the_registry_in_its_order():
    assert list(ENTRIES) == list(REGISTRY), f"{TABLE} is not that of the registry{REMAKE}"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_row_of_the_table_is_right(name: str):
    assert ENTRIES.get(name) == describe_network(name), f"{TABLE} is wrong about {name}{REMAKE}"


def test_files_are_what_the_generator_writes():
    entries = list(ENTRIES.values())  # whose numbers the test above checks
    assert TABLE.read_text() == write_table(entries), f"{TABLE} is not what the generator writes{REMAKE}"
    assert PAGE.read_text() == write_page(entries), f"{PAGE} is not what the generator writes{REMAKE}"


def test_the_page_says_where_a_network_departs_from_its_paper():
    page = write_page([replace(ENTRIES["resnet50"], parameters=1234)])
    assert "| `resnet50` | 3x224x224 | 1,000 | 1,234 | 4,089,184,256 | 50 |\n" in page
    assert "**Departures**: in a bottleneck the 3x3 convolution has the stride" in page
    assert "([arXiv:1512.03385](https://arxiv.org/abs/1512.03385))" not in page.splitlines()[0]
    assert "Shapes:" not in page


def test_numbers_of_papers_become_links():
    assert link("(arXiv:1404.5997 and 1507.06228)") == (
        "([arXiv:1404.5997](https://arxiv.org/abs/1404.5997) and [arXiv:1507.06228](https://arxiv.org/abs/1507.06228))"
    )


@pytest.mark.parametrize("family", sorted({variant.family for variant in REGISTRY.values()}))
def test_every_family_says_what_it_is_and_how_it_was_checked(family: str):
    assert describe_family(family).strip()
    assert "Checked against" in describe_header(family)
    assert find_variant(next(name for name, v in REGISTRY.items() if v.family == family))
