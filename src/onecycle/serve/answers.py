"""The responses of the HTTP API, as its OpenAPI description shows them."""

from pydantic import BaseModel, Field


class ClassProbability(BaseModel):
    """A class and its probability."""

    class_name: str
    probability: float = Field(ge=0, le=1)


class Explanation(BaseModel):
    """The pixels that the network sees, and the heatmap of the most likely class."""

    pixels: str = Field(description="The input of the network: a PNG in base64.")
    heatmap: list[list[float]] = Field(
        description="Grad-CAM (Selvaraju et al. 2017) of the most likely class: rows from the top, values from 0 to 1."
    )


class ImagePrediction(BaseModel):
    """The prediction for one image, or the reason why the image cannot be read."""

    file: str = Field(description="The file name as it was sent.")
    predictions: list[ClassProbability] = Field(description="The most likely classes, most likely first.")
    in_distribution: bool | None = Field(
        description="Whether the image is like those that the network was trained on. If false, it may show none of "
        "the classes. Null if the network has no energy threshold, or if there is an error."
    )
    energy_score: float | None = Field(
        description="The logsumexp of the logits (Liu et al. 2020). It is low if the network finds little evidence of "
        "any class. Null if there is an error."
    )
    error: str | None = Field(description="Why the image cannot be read. If there is an error, `predictions` is empty.")
    explanation: Explanation | None = Field(
        description="Null if it was not requested, if the network has no heatmaps, or if there is an error."
    )


class Predictions(BaseModel):
    """One prediction for each file, in the order of the files."""

    images: list[ImagePrediction]


class Health(BaseModel):
    """The state of the service."""

    status: str
    network: str
    classes: list[str]
    requests: int = Field(description="Requests that are being served.")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
