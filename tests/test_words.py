from candid.words import aligned, milliseconds

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
