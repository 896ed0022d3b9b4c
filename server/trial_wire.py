"""Request models of trying steering vectors, and of the pairs that they are made from."""

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from policies.steering import Flat, Strength
from server.training import Text, TrainRequest
from server.wire import Seed, Strict

VENDOR_JUDGE = (
    "meta-llama/llama-3-8b-instruct"  # Axionic's default; here the served model judges in its place
)

Texts = Annotated[list[Text], Field(min_length=1, max_length=512)]
Prompt = Annotated[str, Field(max_length=32_768)]
Description = Annotated[str, Field(max_length=8192)]


class Evaluate(Strict):
    steering_vector_id: str
    positive_texts: Texts
    negative_texts: Texts
    multiplier: Strength = 1.0
    test_prompts: Annotated[list[Text], Field(max_length=32)] | None = None
    judge_model: str | None = Field(
        default=None, description=f"absent, default, {VENDOR_JUDGE}: the served model"
    )
    persona_description: Description | None = Field(
        default=None, description="what the judge looks for; absent: what the texts show"
    )

    @field_validator("judge_model", "persona_description")
    @classmethod
    def _judges(cls, value: str | None, info: ValidationInfo) -> str | None:
        neutral = (None, "default", VENDOR_JUDGE) if info.field_name == "judge_model" else (None,)
        if value not in neutral and not info.data.get("test_prompts", True):
            raise ValueError("has no effect without test_prompts: there is nothing to judge")
        return value


class GeneratePairs(Strict):
    persona_name: Annotated[str, Field(min_length=1, max_length=200)]
    persona_description: Description = ""
    negative_description: Description | None = None
    num_pairs: Annotated[int, Field(ge=1, le=500)] = 50
    batch_size: Annotated[int, Field(ge=1, le=32, description="pairs being written at once")] = 5
    seed: Seed | None = Field(default=None, description="absent: other pairs each time")


class PairBody(Strict):
    prompt: Prompt
    positive_answer: Text
    negative_answer: Text


class Margins(Strict):
    """Exactly one of `steering_vector_id` and `vector`."""

    steering_vector_id: str | None = None
    vector: Flat | None = Field(default=None, description="{layer: [floats]}, as Axionic's clients save it")
    pairs: Annotated[list[PairBody], Field(min_length=1, max_length=512)]
    strengths: Annotated[list[Strength], Field(min_length=1, max_length=32)]
    neutral: bool = Field(default=True, description="measure the cost on neutral text too")
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=512)] | None = None
    chat_template: bool = Field(
        default=True, description="prompts are a user's messages, where the model has a chat template"
    )

    @model_validator(mode="after")
    def _one_vector(self) -> Self:
        if (self.steering_vector_id is None) == (self.vector is None):
            raise ValueError("give exactly one of steering_vector_id and vector")
        return self

    @property
    def training(self) -> TrainRequest:
        """The pairs as training reads them."""
        return TrainRequest(
            prompts=[pair.prompt for pair in self.pairs],
            positive_answers=[pair.positive_answer for pair in self.pairs],
            negative_answers=[pair.negative_answer for pair in self.pairs],
            chat_template=self.chat_template,
        )
