"""Convert numbers to text, and escape unprintable characters in text."""


def percent(share: float, decimals: int = 2, *, unit: str = "%") -> str:
    """The fraction `share` in percent. Only exactly 1 is shown as 100: a fraction just below 1 is ">99.99"."""
    number = f"{100 * share:.{decimals}f}"
    if share < 1 and float(number) >= 100:
        number = f">{100 - 10**-decimals:.{decimals}f}"
    return number + unit


def loss(value: float, decimals: int = 3) -> str:
    """A loss as text. From 10,000 on it has few digits and an exponent, so that the text is short."""
    return f"{value:.{decimals}f}" if not abs(value) >= 10_000 else f"{value:.{decimals}g}"


def without_controls(text: str) -> str:
    """`text` with an escape in place of every character that is not printable.

    Such characters, for example control characters and marks that reverse text, could change what a terminal shows.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
