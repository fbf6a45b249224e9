"""Figures as SVG that stands in a page: its text is text, and its colours are the page's, light or dark."""

import re
from html import escape

from matplotlib.figure import Figure

from onecycle.report.visualizations import to_svg

_COLOURS = {
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
    """`figure` as an `<svg>` with a text alternative; `name` keeps its parts apart from those of other figures."""
    svg = to_svg(figure)
    body = svg[svg.index("<defs>") :]
    width, height = figure.get_size_inches() * 72
    # Of the names that matplotlib gives to every part only those are needed that others refer to.
    used = set(re.findall(r'#([A-Za-z][\w.-]*)(?=["\)])', body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#([^"\)]*)', rf"\1#{name}-\2", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _COLOURS.get(found[0], found[0]), body)
    body = body.replace("font-family: 'DejaVu Sans'; ", "").replace(' xml:space="preserve"', "")
    # Its rule for strokes would hold for the whole page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}"'
    return f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
