"""The web application: the page, `POST /predict`, `GET /health`, and the API description at `/docs`."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from onecycle.core.errors import InputError, OnecycleError
from onecycle.data.image_files import formats
from onecycle.predict.predictor import Predictor
from onecycle.serve import pages
from onecycle.serve.access import AccessControl
from onecycle.serve.answers import ClassProbability, Explanation, Health, ImagePrediction, Predictions, Problem
from onecycle.serve.batching import MOST_AT_ONCE, Batcher, BusyError
from onecycle.serve.decoder import FORMATS
from onecycle.serve.decoders import PROCESSES, Decoders
from onecycle.serve.headers import SecureHeaders
from onecycle.serve.inference import Answer, Inference, Question
from onecycle.serve.limits import LIMITS, Limits
from onecycle.serve.uploads import Room, Upload, busy, read_uploads

T = TypeVar("T")

_HEATMAP_DIGITS = 3
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words}
    for status, words in {
        400: "The host name is not allowed.",
        403: "A page of another site sent the request.",
        408: "The request took too long to arrive.",
        413: "The request is too large.",
        415: "The request is not a form.",
        503: "The service is busy; try again in a moment.",
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
                            "description": f"Images: {', '.join(name for name in FORMATS if name in formats())}.",
                        }
                    },
                }
            }
        },
    }
}


def make_app(
    predictor: Predictor, name: str, *, host: str, allowed_hosts: Sequence[str] = (), limits: Limits = LIMITS
) -> FastAPI:
    """The web application for `predictor`. `name` is the title of the page.

    `host` is the address that the server listens at. `allowed_hosts` are names of the service in addition to the names
    of this machine.
    """
    service = _Service(predictor, limits)

    app = FastAPI(
        title=f"onecycle: {name}",
        description=f"Predicts the class of images: {', '.join(predictor.classes)}.",
        version=version("onecycle"),
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(HeadAsGet)
    app.add_middleware(AccessControl, own=[host], allowed=allowed_hosts)
    app.add_middleware(SecureHeaders)
    pages.add_to(app, name, predictor, limits)

    app.add_exception_handler(RequestValidationError, _not_valid)

    @app.get("/health", responses={status: _REFUSALS[status] for status in (400, 403)})
    async def health() -> Health:
        """The state of the service and the classes of its network."""
        classes = list(predictor.classes)
        return Health(status="ok", network=name, classes=classes, requests=service.room.requests)

    @app.post(
        "/predict",
        openapi_extra=_FORM,
        responses={
            **_REFUSALS,
            422: {
                "model": Predictions | Problem,
                "description": "No file could be read, or the request is malformed.",
            },
        },
    )
    async def predict(
        request: Request,
        response: Response,
        top: Annotated[int, Query(ge=1, le=1000, description="The number of classes to return.")] = 5,
        explain: Annotated[bool, Query(description="Also return Grad-CAM heatmaps.")] = False,
    ) -> Predictions:
        """Predict the classes of one or more images. An unreadable file does not affect the other files."""
        with service.room.of_a_request() as room:
            uploads = await read_uploads(request, room, limits)
            room.take(images=len(uploads))
            # A request with many images takes turns with other requests.
            turns = asyncio.Semaphore(PROCESSES)
            images = await _gather([service.predict(upload, turns, top, explain) for upload in uploads])
        if all(image.error for image in images):
            response.status_code = 422
        return Predictions(images=images)

    return app


class HeadAsGet:
    """Answers HEAD like GET. The server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self.app({**scope, "method": "GET"} if is_head else scope, receive, send)


async def _not_valid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
    return JSONResponse({"detail": reasons}, 422)


class _Service:
    """What all requests share: the network, the decoder processes and the limits."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self.room = Room(limits)
        most = min(MOST_AT_ONCE, predictor.batch_size)  # fewer images if they are large
        self.batcher: Batcher[Question, Answer] = Batcher(Inference(predictor), room=limits.waiting_images, most=most)
        self.decoders = Decoders(predictor.preprocessing.input_size, limits)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the decoders and the batcher while the application runs. The batcher predicts queued images."""
        await self.decoders.start()
        work = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            work.cancel()
            await self.decoders.stop()

    async def predict(self, upload: Upload, turns: asyncio.Semaphore, top: int, explain: bool) -> ImagePrediction:
        """The prediction for one file. `turns` limits how many files of one request are decoded at a time.

        Raises:
            HTTPException: when the service is too busy.
        """
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                async with turns:
                    image = await self._decode(upload)
                answer = await self.batcher.submit(Question(image, explain))
        except OnecycleError as error:
            return ImagePrediction(
                file=upload.name,
                predictions=[],
                in_distribution=None,
                energy_score=None,
                error=str(error),
                explanation=None,
            )
        except (BusyError, TimeoutError) as error:
            raise busy() from error
        return ImagePrediction(
            file=upload.name,
            predictions=[
                ClassProbability(class_name=name, probability=min(probability, 1.0))
                for name, probability in answer.prediction.top(top)
            ],
            in_distribution=answer.prediction.in_distribution,
            energy_score=answer.prediction.energy_score,
            error=None,
            explanation=None if answer.heatmap is None else _explanation(image, answer.heatmap),
        )

    async def _decode(self, upload: Upload) -> NDArray[np.uint8]:
        if len(upload.content) > self.limits.file_bytes:
            raise InputError(f"this file is larger than {self.limits.file_bytes // 2**20} MiB; make it smaller")
        return await self.decoders.decode(upload.content)


async def _gather(answers: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all `answers`, computed at the same time. If one fails, the others are canceled."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _explanation(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> Explanation:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    values = heatmap.astype(float).round(_HEATMAP_DIGITS).tolist()
    return Explanation(pixels=base64.b64encode(png.getvalue()).decode(), heatmap=values)
