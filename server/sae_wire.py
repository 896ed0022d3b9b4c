"""What the routes of sparse autoencoders take and answer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from server.sae_features import Feature
from server.saes import SaeCard, Saes, StoredSae
from server.wire import Strict

MAX_TEXTS = 64
MAX_FEATURE_TEXT = 4000  # characters

Text = Annotated[str, Field(max_length=32_768)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class StatesRequest(Strict):
    """POST /sae/states."""

    texts: Texts
    layer: int = Field(ge=0, description="the states are those that leave this block")
    max_tokens: int | None = Field(default=None, ge=1, description="of each text; what follows is left out")
    prompts: list[Text | None] | None = Field(
        default=None,
        description="one for each text that answers a user's message, in the model's chat template; or null",
    )
    add_special_tokens: bool = Field(default=True, description="to texts without a prompt")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if self.prompts is not None and len(self.prompts) != len(self.texts):
            raise ValueError("texts and prompts must be lists of equal length; null stands for no prompt")
        return self


class ServedModel(BaseModel):
    """What an autoencoder has to fit. `weights` is the model's folder or id, `names` all it goes by here."""

    name: str
    names: list[str]
    fingerprint: str
    layers: int
    width: int
    weights: str


class SaeItem(BaseModel):
    """See `SaeCard`; `fits` says that it was made for the served model's weights."""

    name: str
    source: str
    architecture: str
    layer: int
    hook: str
    d_in: int
    d_sae: int
    digest: str
    model_name: str
    model_fingerprint: str
    quality: Mapping[str, float]
    approximated: bool
    created_at: str
    fits: bool

    @classmethod
    def of(cls, card: SaeCard, *, fits: bool) -> Self:
        named = {name: getattr(card, name) for name in cls.model_fields if name != "fits"}
        return cls(**named, fits=fits)


class BrokenItem(BaseModel):
    name: str
    problem: str


class SaeList(BaseModel):
    """`broken` are folders that hold no sound autoencoder."""

    model: ServedModel
    saes: list[SaeItem]
    broken: list[BrokenItem]

    @classmethod
    def of(cls, saes: Saes, names: Sequence[str], weights: str) -> Self:
        served = ServedModel(
            name=saes.model.name,
            names=list(names),
            fingerprint=saes.model.fingerprint,
            layers=saes.model.layers,
            width=saes.model.width,
            weights=weights,
        )
        return cls(
            model=served,
            saes=[SaeItem.of(card, fits=card.fits(saes.model)) for card in saes.list()],
            broken=[BrokenItem(name=each.name, problem=each.problem) for each in saes.broken()],
        )


class TopToken(BaseModel):
    """`position` counts the text's tokens from 0."""

    position: int
    token: str
    activation: float


class FeatureItem(BaseModel):
    """One latent: over the text's tokens without the first its largest and mean activation and the number of
    tokens where it is active; `density` is the share of neutral tokens where it is."""

    feature: int
    max_activation: float
    mean_activation: float
    active_tokens: int
    density: float | None
    top_tokens: list[TopToken]

    @classmethod
    def of(cls, feature: Feature, tokens: Sequence[str]) -> Self:
        """`tokens` are the whole text's: the state in row r is that of token r + 1."""
        return cls(
            feature=feature.latent,
            max_activation=feature.max,
            mean_activation=feature.mean,
            active_tokens=feature.active,
            density=feature.density,
            top_tokens=[
                TopToken(position=each.row + 1, token=tokens[each.row + 1], activation=each.activation)
                for each in feature.top
            ],
        )


class FeatureList(BaseModel):
    sae: str
    layer: int
    features_in_all: int
    tokens: list[str]
    features: list[FeatureItem]

    @classmethod
    def of(cls, stored: StoredSae, tokens: Sequence[str], found: Sequence[Feature]) -> Self:
        return cls(
            sae=stored.card.name,
            layer=stored.card.layer,
            features_in_all=stored.card.d_sae,
            tokens=list(tokens),
            features=[FeatureItem.of(each, tokens) for each in found],
        )
