"""The web page with its style and script, and the API documentation."""

import os
from importlib.resources import files

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

from onecycle.predict.predictor import Predictor
from onecycle.serve.limits import Limits

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = ("page.css", "page.js", "docs.js", "icon.svg")


def add_to(app: FastAPI, name: str, predictor: Predictor, limits: Limits) -> None:
    """Add the page for `predictor` at `/` and the API documentation at `/docs` to `app`."""
    environment = Environment(
        loader=PackageLoader("onecycle.serve", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    size = predictor.preprocessing.input_size
    values = {"name": name, "classes": predictor.classes, "size": size, "limits": limits}
    for path in ("index.html", "docs.html"):
        _serve(app, "/" if path == "index.html" else "/docs", environment.get_template(path).render(values))
    for path in _FILES:
        content = files("onecycle.serve").joinpath("page", path).read_text(encoding="utf-8")
        _serve(app, f"/{path}", content, _KINDS[os.path.splitext(path)[1]])
    # Serve a local copy of Swagger UI, because FastAPI's own page would load Swagger UI from the web.
    app.mount("/swagger", StaticFiles(packages=[(fastapi_offline.__name__, "static")]), name="swagger")


def _serve(app: FastAPI, path: str, content: str, kind: str = "text/html") -> None:
    async def answer() -> Response:
        return HTMLResponse(content) if kind == "text/html" else Response(content, media_type=kind)

    app.add_api_route(path, answer, include_in_schema=False)
