"""Request and response models of behaviours, by the names of Axionic's API and of its documentation."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from server.behavior_maker import FALSE_POSITIVES, Examples, Recomputed, RecomputeStatus
from server.behaviors import BehaviorRecord
from server.errors import InvalidRequest
from server.readiness import BehaviorPart, Readiness, ReadinessState
from server.training import Text
from server.wire import Strict
from steering.train.pairs import Pair

LEAST_PAIRS = 4  # texts held out tell where the threshold lies
MOST_PAIRS = 5000

_NO_NUL = r"^[^\x00]*$"  # PostgreSQL holds any other character
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_NUL)]
Answers = Annotated[list[Text], Field(min_length=LEAST_PAIRS, max_length=MOST_PAIRS)]
Prompts = Annotated[list[Annotated[str, Field(max_length=32_768)]], Field(max_length=MOST_PAIRS)]


class BehaviorRequest(Strict):
    """POST /behaviors/create. Lists of equal length: answer i of both kinds is to prompt i.

    Positive answers show the behaviour. Without prompts answers stand alone. `steering_vector_id` names
    a vector that points towards the behaviour and is subtracted; without it one is made.
    """

    behavior_name: Name
    positive_answers: Answers
    negative_answers: Annotated[list[Text], Field(max_length=MOST_PAIRS)] | None = None
    prompts: Prompts | None = None
    description: Annotated[str, Field(max_length=4000, pattern=_NO_NUL)] | None = None
    layer_names: Annotated[list[str], Field(max_length=16)] | None = None
    steering_vector_id: str | None = None
    sae: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    false_positives: Annotated[float, Field(ge=0, le=0.5)] = FALSE_POSITIVES

    def examples(self) -> Examples:
        """Raises InvalidRequest for lists that do not fit each other."""
        count = len(self.positive_answers)
        if not self.negative_answers:
            raise InvalidRequest(
                "a behaviour is told from answers that do not show it: give one for each positive answer"
                " (POST /steering/generate-pairs writes answers of both kinds)",
                param="negative_answers",
            )
        for field in ("negative_answers", "prompts"):
            given = getattr(self, field)
            if given is not None and len(given) != count:
                raise InvalidRequest(
                    f"there are {count} positive answers, so this needs {count} entries, not {len(given)}",
                    param=field,
                )
        prompts = self.prompts or [""] * count
        pairs = zip(prompts, self.positive_answers, self.negative_answers, strict=True)
        return Examples(
            pairs=tuple(Pair(*texts) for texts in pairs),
            steering_vector_id=self.steering_vector_id,
            sae=self.sae,
            layer_names=tuple(self.layer_names or ()),
            false_positives=self.false_positives,
        )


class MissingItem(Strict):
    part: BehaviorPart
    message: str


class ReadinessItem(Strict):
    """Whether a behaviour can be monitored and corrected; what `missing` lists is not there."""

    ready: bool
    state: ReadinessState
    monitored: bool
    corrected: bool
    missing: list[MissingItem]

    @classmethod
    def of(cls, found: Readiness) -> "ReadinessItem":
        return cls(
            ready=found.state is ReadinessState.READY,
            state=found.state,
            monitored=found.monitored,
            corrected=found.corrected,
            missing=[MissingItem(part=each.part, message=each.message) for each in found.missing],
        )


class BehaviorReadiness(ReadinessItem):
    """GET /behaviors/{id}/readiness."""

    id: str
    behavior_name: str


class BehaviorResponse(Strict):
    """Paths are routes of this server. `sae_baseline` says which latents tell the behaviour and with which
    evidence; null where another version of the server wrote it. `sae_id` is the autoencoder's name here,
    `sae_release` where it came from. `steering_strength` is below 0: the vector is subtracted.
    """

    id: str
    behavior_name: str
    description: str
    model_id: str
    model_fingerprint: str
    steering_vector_id: str
    steering_strength: float | None
    sae_baseline_path: str
    sae_baseline: dict[str, Any] | None
    generation_prompts_path: str
    hook_name: str
    layer: int
    sae_id: str
    sae_release: str
    sae_digest: str
    threshold: float | None
    auroc: float | None
    peak_auroc: float | None
    false_positive_rate: float | None
    true_positive_rate: float | None
    evidence: dict[str, Any]
    readiness: ReadinessItem
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, record: BehaviorRecord, found: Readiness) -> "BehaviorResponse":
        baseline = record.baseline
        evidence = baseline.evidence if baseline else None
        path = f"/behaviors/{record.id}"
        return cls(
            id=record.id,
            behavior_name=record.name,
            description=record.description,
            model_id=record.model_name,
            model_fingerprint=record.model_fingerprint,
            steering_vector_id=record.steering_vector_id,
            steering_strength=record.strength,
            sae_baseline_path=path,
            sae_baseline=baseline.encode() if baseline else None,
            generation_prompts_path=f"{path}/examples",
            hook_name=record.hook,
            layer=record.layer,
            sae_id=record.sae,
            sae_release=record.sae_source,
            sae_digest=record.sae_digest,
            threshold=baseline.threshold if baseline else None,
            auroc=evidence and evidence.auroc,
            peak_auroc=evidence and evidence.peak_auroc,
            false_positive_rate=evidence and evidence.false_positive_rate,
            true_positive_rate=evidence and evidence.true_positive_rate,
            evidence=dict(record.evidence),
            readiness=ReadinessItem.of(found),
            created_at=record.created_at,
            updated_at=record.updated_at,
        )


class ExampleItem(Strict):
    """One line of a data set, as Axionic's client reads them."""

    prompt: str
    positive_answer: str
    negative_answer: str

    @classmethod
    def of(cls, pair: Pair) -> "ExampleItem":
        return cls(prompt=pair.prompt, positive_answer=pair.positive, negative_answer=pair.negative or "")


class RenameBehaviorRequest(Strict):
    behavior_name: Name


class DeletedBehavior(Strict):
    id: str
    deleted: Literal[True] = True


class RecomputeBaselinesRequest(Strict):
    """Without ids, all behaviours that are not ready."""

    model_id: str
    behavior_ids: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None


class RecomputeBaselineResult(Strict):
    behavior_id: str
    behavior_name: str
    status: RecomputeStatus
    baseline_path: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, each: Recomputed) -> "RecomputeBaselineResult":
        failed = each.status is RecomputeStatus.FAILED
        return cls(
            behavior_id=each.record.id,
            behavior_name=each.record.name,
            status=each.status,
            baseline_path=None if failed else f"/behaviors/{each.record.id}",
            error=each.error,
        )


class RecomputeBaselinesResponse(Strict):
    model_id: str
    total: int
    succeeded: int
    failed: int
    skipped: int
    results: list[RecomputeBaselineResult]

    @classmethod
    def of(cls, model_id: str, results: Sequence[Recomputed]) -> "RecomputeBaselinesResponse":
        found = [each.status for each in results]
        return cls(
            model_id=model_id,
            total=len(results),
            succeeded=found.count(RecomputeStatus.SUCCEEDED),
            failed=found.count(RecomputeStatus.FAILED),
            skipped=found.count(RecomputeStatus.SKIPPED),
            results=[RecomputeBaselineResult.of(each) for each in results],
        )


class ObservedBehaviors(Strict):
    """GET /observability/behaviors: those of the state asked for, and how many there are of each."""

    behaviors: list[BehaviorResponse]
    total: int
    ready: int
    partial: int
