from unicodedata import normalize

import pytest

from onecycle.core.class_names import find_alike

COMPOSED, DECOMPOSED = (normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (COMPOSED, DECOMPOSED, "Unicode form"),
        ("한국", normalize("NFD", "한국"), "Unicode form"),
        ("Å", "\N{ANGSTROM SIGN}", "Unicode form"),
        ("K", "\N{KELVIN SIGN}", "Unicode form"),
        ("Cat", "cat", "case"),
        ("ÉCOLE", "école", "case"),
        ("cat", "cat ", "spaces"),
        (" cat", "cat", "spaces"),
        ("polar  bear", "polar bear", "spaces"),
        (COMPOSED, DECOMPOSED.lower(), "Unicode form and case"),
        ("Polar bear", "polar bear ", "case and spaces"),
    ],
)
def test_names_that_look_alike_are_found_with_what_they_differ_in(one: str, other: str, difference: str) -> None:
    assert find_alike(["dog", one, "bird", other]) == ((one, other), difference)
    assert find_alike([other, one]) == ((other, one), difference)


@pytest.mark.parametrize(
    "names", [("Maße", "Masse"), ("o", "ö"), ("polarbear", "polar bear"), ("1", "१"), ("x2", "x²")]
)
def test_names_that_look_different_are_not_found(names: tuple[str, str]) -> None:
    assert find_alike(names) is None
