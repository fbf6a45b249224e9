"""What the service answers, as its description (OpenAPI) has it."""

from pydantic import BaseModel, Field


class ClassProbability(BaseModel):
    """A class, and how likely the network takes it to be."""

    label: str
    probability: float = Field(ge=0, le=1)


class Explanation(BaseModel):
    """What the network saw of a picture, and what of that spoke for its likeliest class."""

    seen: str = Field(description="The pixels that the network sees: a PNG in base64.")
    heat: list[list[float]] = Field(
        description="Grad-CAM (Selvaraju et al. 2017), rows from the top, from 0 to 1 where most spoke for the class."
    )


class PicturePrediction(BaseModel):
    """What is in one picture, or why it cannot be read."""

    file: str = Field(description="The name that was sent.")
    predictions: list[ClassProbability] = Field(description="The likeliest classes, most likely first.")
    error: str | None = Field(description="Why the picture cannot be read; then there are no predictions.")
    explanation: Explanation | None = Field(description="Where it was asked for.")


class Predictions(BaseModel):
    """One answer for each file, in the order of the files."""

    pictures: list[PicturePrediction]


class Health(BaseModel):
    """What answers, and how busy it is."""

    status: str
    network: str
    classes: list[str]
    requests: int = Field(description="That are being served now.")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
