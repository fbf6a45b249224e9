"""Embed figures in a page as SVG. Text stays text instead of paths. Colors follow the light or dark theme."""

import re
from html import escape

from matplotlib.figure import Figure

from onecycle.report.visualizations import to_svg

_COLORS = {
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermillion)",
    "#00785a": "var(--green)",
    "#9c3f7d": "var(--purple)",
    "#7d5a00": "var(--brown)",
    "#51606e": "var(--slate)",
    "#222222": "var(--ink)",
    "#666666": "var(--grey)",
    "#aaaaaa": "var(--grey)",
    "#e4e4e4": "var(--light)",
    "#ffffff": "var(--paper)",
}


def inline(figure: Figure, name: str, description: str) -> str:
    """`figure` as an `<svg>` with a text alternative. `name` makes the ids in the SVG unique in the page."""
    svg = to_svg(figure)
    body = svg[svg.index("<defs>") :]
    width, height = figure.get_size_inches() * 72
    # matplotlib gives every part an id. Keep only the ids that are referenced.
    used = set(re.findall(r'#([A-Za-z][\w.-]*)(?=["\)])', body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#([^"\)]*)', rf"\1#{name}-\2", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _COLORS.get(found[0], found[0]), body)
    # Without a font family, the text gets the font of the page. For letters that this font lacks, the browser uses its
    # own fonts.
    body = re.sub(r"font-family: '[^;\"]*; ", "", body).replace(' xml:space="preserve"', "")
    # Remove matplotlib's stroke style, because it would apply to the whole page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}"'
    return f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
