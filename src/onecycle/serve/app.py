"""The service: a page, `POST /predict`, `GET /health`, and its description at `/docs`."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from onecycle.core.errors import InputError
from onecycle.data.preprocessing import open_picture
from onecycle.predict.predictor import Predictor
from onecycle.serve import pages
from onecycle.serve.answers import ClassProbability, Explanation, Health, PicturePrediction, Predictions, Problem
from onecycle.serve.batching import Batcher, BusyError
from onecycle.serve.headers import SecureHeaders
from onecycle.serve.inference import Answer, Inference, Question
from onecycle.serve.limits import LIMITS, Limits
from onecycle.serve.uploads import Room, Upload, busy, read_uploads

T = TypeVar("T")

_DECODERS = 2  # each of which may hold a picture's pixels several times over
_HEAT_DIGITS = 3
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")  # that people send; rare ones are seldom looked after
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words}
    for status, words in {
        408: "The request took too long to arrive.",
        413: "The request is too large.",
        415: "The request is no form.",
        503: "Too much to do; try again in a moment.",
    }.items()
}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": f"Pictures: {', '.join(_FORMATS)}.",
                        }
                    },
                }
            }
        },
    }
}


def make_app(predictor: Predictor, name: str, *, limits: Limits = LIMITS, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The service of the network of `predictor`, which the page calls `name` and which answers to the names `hosts`."""
    service = _Service(predictor, limits)

    app = FastAPI(
        title=f"onecycle: {name}",
        description=f"Names what is in pictures: {', '.join(predictor.classes)}.",
        version=version("onecycle"),
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(SecureHeaders)
    pages.add_to(app, name, predictor, limits)

    app.add_exception_handler(RequestValidationError, _not_valid)

    @app.get("/health")
    async def health() -> Health:
        """Whether the service is up, and what its network knows."""
        classes = list(predictor.classes)
        return Health(status="ok", network=name, classes=classes, requests=service.room.requests)

    @app.post(
        "/predict",
        openapi_extra=_FORM,
        responses={
            **_REFUSALS,
            422: {
                "model": Predictions | Problem,
                "description": "No file could be read, for the reasons given; or the request is not as it must be.",
            },
        },
    )
    async def predict(
        request: Request,
        response: Response,
        top: Annotated[int, Query(ge=1, le=1000, description="How many classes to name.")] = 5,
        explain: Annotated[bool, Query(description="Say what the network looked at, too.")] = False,
    ) -> Predictions:
        """Name what is in pictures, one or several. Files that cannot be read do not keep the others from it."""
        with service.room.of_a_request() as room:
            uploads = await read_uploads(request, room, limits)
            room.take(pictures=len(uploads))
            pictures = await _together([service.answer(upload, top, explain) for upload in uploads])
        if all(picture.error for picture in pictures):
            response.status_code = 422
        return Predictions(pictures=pictures)

    return app


async def _not_valid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return JSONResponse({"detail": reasons}, 422)


class _Service:
    """What all requests share: the network, the threads that decode, and how much room there is."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self.room = Room(limits)
        self.batcher: Batcher[Question, Answer] = Batcher(Inference(predictor), room=limits.waiting_pictures)
        self.decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoder")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Inside, what waits is worked on."""
        work = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            work.cancel()
            self.decoders.shutdown(wait=False, cancel_futures=True)

    async def answer(self, upload: Upload, top: int, explain: bool) -> PicturePrediction:
        """What is in one file.

        Raises:
            HTTPException: when there is no room for it, or its turn does not come.
        """
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                image = await asyncio.get_running_loop().run_in_executor(self.decoders, self._decode, upload)
                seen = await self.batcher.submit(Question(image, explain))
        except InputError as error:
            return PicturePrediction(file=upload.name, predictions=[], error=str(error), explanation=None)
        except (BusyError, TimeoutError) as error:
            raise busy() from error
        return PicturePrediction(
            file=upload.name,
            predictions=[
                ClassProbability(label=label, probability=min(probability, 1.0))
                for label, probability in seen.prediction.top(top)
            ],
            error=None,
            explanation=None if seen.heat is None else _explanation(image, seen.heat),
        )

    def _decode(self, upload: Upload) -> NDArray[np.uint8]:
        if len(upload.content) > self.limits.file_bytes:
            raise InputError(f"this file is larger than {self.limits.file_bytes // 2**20} MiB; make it smaller")
        picture = open_picture(upload.content, "this file", most_pixels=self.limits.pixels, only=_FORMATS)
        return self.predictor.to_input(picture)


async def _together(answers: Sequence[Awaitable[T]]) -> list[T]:
    """All `answers`, worked on at once; where one fails, none goes on."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _explanation(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> Explanation:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return Explanation(
        seen=base64.b64encode(png.getvalue()).decode(), heat=heat.astype(float).round(_HEAT_DIGITS).tolist()
    )
