import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecycle.core.formatting import loss, percent


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.9337, 2, "93.37%"),
        (0.5, 0, "50%"),
        (0, 2, "0.00%"),
        (1, 2, "100.00%"),
        (9_999 / 10_000, 2, "99.99%"),
        (49_999 / 50_000, 2, ">99.99%"),
        (1_999 / 2_000, 1, ">99.9%"),
        (399 / 400, 0, ">99%"),
    ],
)
def test_only_exactly_all_is_100_percent(share: float, decimals: int, text: str) -> None:
    assert percent(share, decimals) == text


@given(share=st.floats(0, 1), decimals=st.integers(0, 4))
def test_other_fractions_are_rounded(share: float, decimals: int) -> None:
    text = percent(share, decimals, unit=" %")
    assert text.startswith("100") == (share == 1)
    assert text == f"{100 * share:.{decimals}f} %" or (text.startswith(">99") and share < 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25049, "0.250"),
        (-1.5, "-1.500"),
        (9_999.0, "9999.000"),
        (12_345.6, "1.23e+04"),
        (1.48e228, "1.48e+228"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_loss_is_short_however_large_it_is(value: float, text: str) -> None:
    assert loss(value) == text
