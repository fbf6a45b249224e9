"""Render the templates of reports and model cards."""

import json
import re

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from onecycle.core import formatting
from onecycle.report.page import counted, dataset_name, duration, percent

_LONGEST_FILE_NAME = 64  # longer file names are shortened to this many characters
_BREAKS = re.compile(r"(?<=[/_.:-])(?=[^/_.:-])")


def file_name(name: str) -> Markup:
    """A file name as HTML. A line may break after each part of the name. A long name is shortened in the middle."""
    half = _LONGEST_FILE_NAME // 2
    short = name if len(name) <= _LONGEST_FILE_NAME else f"{name[: half - 1]}…{name[-half:]}"
    breakable = Markup("<wbr>").join(_BREAKS.split(short))
    return Markup('<span title="{}">{}</span>').format(name, breakable) if short != name else breakable


def render(template: str, **values: object) -> str:
    """The text of a file in templates/, with `values` filled in. In .html files the values are escaped."""
    environment = Environment(
        loader=PackageLoader("onecycle.report", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "loss": formatting.loss,
        "counted": counted,
        "file_name": file_name,
        "dataset_name": dataset_name,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),  # a JSON string is also a YAML string
    }
    return environment.get_template(template).render(**values)
