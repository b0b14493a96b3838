"""The documents of the OpenAI images API that this gateway takes and gives.

Source: the API reference of POST /v1/images/generations and GET /v1/models, and the types of the `openai` package.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from worker.contract import MAX_PROMPT_CHARACTERS


class ImagesRequest(BaseModel):
    """The body of POST /v1/images/generations. Further fields are those of POST /generate."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        title="OpenAIImagesRequest",
        json_schema_extra={
            "examples": [
                {"model": "emoji", "prompt": "a red apple", "n": 2, "seed": 7},
                {"model": "digits", "prompt": "3", "response_format": "b64_json", "steps": 20},
            ]
        },
    )

    prompt: StrictStr = Field(
        max_length=MAX_PROMPT_CHARACTERS,
        description="What to draw. Of a model with labels: a label's name. Empty: without a condition.",
    )
    model: StrictStr | None = Field(default=None, description="Absent: the default model, see /v1/models.")
    n: StrictInt | None = Field(default=None, ge=1, description="How many images; absent: 1.")
    size: Annotated[StrictStr, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = Field(
        default=None, description="Width x height, `64x64`; absent or `auto`: the model's own."
    )
    response_format: Literal["url", "b64_json"] | None = Field(default=None, description="Absent: `url`.")
    output_format: Literal["png", "webp"] | None = Field(default=None, description="Absent: `png`. Both are lossless.")
    background: Literal["auto", "opaque"] | None = Field(default=None, description="Ignored.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="Ignored: the field `steps` says how much work an image is worth."
    )
    style: Literal["vivid", "natural"] | None = Field(default=None, description="Ignored.")
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Ignored.")
    stream: Literal[False] | None = Field(default=None, description="Follow `/jobs/{id}/events` to see more.")
    user: StrictStr | None = Field(default=None, description="Ignored.")
    safety_identifier: StrictStr | None = Field(default=None, description="Ignored.")

    @property
    def further(self) -> dict[str, Any]:
        """The fields that the API does not know."""
        return dict(self.model_extra or {})


class ImageData(BaseModel):
    """One of the two, as `response_format` asked."""

    url: str | None = None
    b64_json: str | None = None


class ImagesResponse(BaseModel):
    created: int = Field(description="Seconds since 1970.")
    data: list[ImageData]
    output_format: Literal["png", "webp"]
    size: str
    job: str = Field(description="Address of the job behind it; its seed, hashes and receipt are there.")


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "reverie"


class OpenAIModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    error: ErrorBody
