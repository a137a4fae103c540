import pytest

from candid.words import aligned, duration, milliseconds, moment, percent, shorten, showable

ROWS = [("layer", "kind", "KiB"), ("blocks.0.conv1", "conv 3x3", "1,024"), ("head", "linear", "4")]


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert aligned(ROWS, numbers={2}) == [
        "layer           kind        KiB",
        "───────────────────────────────",
        "blocks.0.conv1  conv 3x3  1,024",
        "head            linear        4",
    ]


def test_a_narrow_place_moves_columns_together_and_then_shortens_the_first():
    assert aligned(ROWS, numbers={2}, width=30)[2] == "blocks.0.conv1 conv 3x3 1,024"
    assert aligned(ROWS, numbers={2}, width=25)[2] == "block…onv1 conv 3x3 1,024"
    assert max(map(len, aligned(ROWS, numbers={2}, width=5))) == 23


def test_wide_characters_count_as_two():
    assert aligned([("name", "n"), ("猫", "1"), ("cat", "2")])[2:] == ["猫    1", "cat   2"]


def test_milliseconds_have_three_digits_or_all_before_the_point():
    assert list(map(milliseconds, (0.0, 0.314, 9.949, 9.951, 99.4, 99.6, 1250.4))) == [
        "0.00 ms",
        "0.31 ms",
        "9.95 ms",
        "10.0 ms",
        "99.4 ms",
        "100 ms",
        "1,250 ms",
    ]


def test_numbers_are_written_for_people():
    assert [percent(share) for share in (0.873, 1.0, None, float("nan"))] == ["87.30 %", "100.00 %", "–", "–"]
    assert [duration(seconds) for seconds in (45.4, 133.2, 11100)] == ["45 s", "2 min 13 s", "3 h 5 min"]
    assert moment("yesterday") == "yesterday"


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("cat", 9, "cat"),
        ("golden retriever", 9, "gold…ever"),
        ("非常に長い名前", 9, "非常…名前"),
        ("bell\x07\nand", 20, "bell��and"),
    ],
)
def test_names_are_shortened_in_the_middle(name, width, short):
    assert shorten(name, width) == short


def test_characters_without_a_picture_are_replaced():
    assert showable("a\ud800b") == "a�b"
