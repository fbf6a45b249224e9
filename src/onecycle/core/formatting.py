"""Numbers as text."""


def percent(share: float, decimals: int = 2, *, unit: str = "%") -> str:
    """The fraction `share` in percent. Only exactly 1 is shown as 100: a fraction just below 1 is ">99.99"."""
    number = f"{100 * share:.{decimals}f}"
    if share < 1 and float(number) >= 100:
        number = f">{100 - 10**-decimals:.{decimals}f}"
    return number + unit
