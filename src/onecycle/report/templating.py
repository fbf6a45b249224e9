"""Render the templates of reports and model cards."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from onecycle.report.page import dataset_name, duration, percent


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
        "dataset_name": dataset_name,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),  # a JSON string is also a YAML string
    }
    return environment.get_template(template).render(**values)
