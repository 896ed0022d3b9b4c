"""Policies tried against prompts: what share passes, and which of many variants does best. Pure."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from pydantic import ValidationError

from policies.policy import RuntimePolicy
from policies.run import Outcome

MAX_AXES, MAX_VALUES, MAX_TRIALS = 16, 64, 128
MAX_POINTS = 1024  # of a grid that are looked at
# The axes that Axionic's reference varies, in its order; any other path follows in the request's.
_FIRST_AXES = ("sampling.method", "sampling.temperature", "sampling.top_p", "optimization.best_of_n")
# What is varied where no policy is given.
BASE = {
    "sampling": {"method": "top-k", "temperature": 0.7, "top_p": 0.9},
    "optimization": {"best_of_n": 1},
}

Run = Callable[[RuntimePolicy, Sequence[str]], Awaitable[Sequence[Outcome]]]


class SearchError(ValueError):
    """`field` is the path within the request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Score:
    """Of one policy over prompts. Runs that failed count as not passed; averages are over the others."""

    success_rate: float
    avg_score: float
    avg_latency_ms: float
    avg_tokens: float
    pass_count: int
    fail_count: int
    error_count: int = 0

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], errors: int = 0) -> "Score":
        """`outcomes` of the runs that ended, beside `errors` that did not."""
        count = len(outcomes) + errors
        ended = len(outcomes) or 1
        passed = sum(outcome.winner.verdict.accepted for outcome in outcomes)
        return cls(
            success_rate=passed / count,
            avg_score=sum(outcome.winner.verdict.score for outcome in outcomes) / ended,
            avg_latency_ms=sum(outcome.latency_ms for outcome in outcomes) / ended,
            avg_tokens=sum(outcome.winner.answer.tokens for outcome in outcomes) / ended,
            pass_count=passed,
            fail_count=count - passed,
            error_count=errors,
        )

    @property
    def rank(self) -> tuple[float, bool, float, float]:
        ran = self.error_count < self.pass_count + self.fail_count
        return self.success_rate, ran, self.avg_score, -self.avg_latency_ms


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy as JSON, with one value from each axis."""

    plain: dict[str, Any]
    policy: RuntimePolicy


@dataclass(frozen=True, slots=True)
class Skipped:
    """A point of the grid that makes no policy, because one of its values has no effect beside the others."""

    point: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class Grid:
    tried: list[Variant]
    skipped: list[Skipped]


def grid(base: Mapping[str, Any], space: Mapping[str, Sequence[Any]], max_trials: int) -> Grid:
    """The first `max_trials` points over dotted paths that make a policy, the last axis fastest; the points
    among them that make none are skipped.

    Raises SearchError for a path that no policy has, and for a value that makes no policy whatever the other
    axes say, as far as the first MAX_POINTS tell.
    """
    axes = _axes(space)
    whole = _Base.of(base, axes)
    found = Grid([], [])
    useful: set[tuple[int, int]] = set()  # axis and value
    refused: dict[tuple[int, int], SearchError] = {}
    for point in islice(product(*(range(len(space[path])) for path in axes)), MAX_POINTS):
        enough = len(found.tried) == max_trials
        if enough and refused.keys() <= useful:
            break
        try:
            variant = _variant(whole, space, axes, point)
        except SearchError as error:
            if not point:
                raise
            for place in enumerate(point):
                refused.setdefault(place, error)
            if not enough:
                values = {path: space[path][index] for path, index in zip(axes, point, strict=True)}
                found.skipped.append(Skipped(values, str(error)))
            continue
        useful.update(enumerate(point))
        if not enough:
            found.tried.append(variant)
    useless = [place for place in refused if place not in useful]
    if useless:
        raise _refusal([axes[axis] for axis, _ in useless], refused[useless[0]])
    return found


def _axes(space: Mapping[str, Sequence[Any]]) -> list[str]:
    axes = sorted(
        space, key=lambda path: _FIRST_AXES.index(path) if path in _FIRST_AXES else len(_FIRST_AXES)
    )
    for path in axes:
        if not space[path]:
            raise SearchError(f"search_space.{path}", "an axis has at least one value")
    return axes


def _refusal(paths: Sequence[str], error: SearchError) -> SearchError:
    """`error`, by the axis whose values are to blame where that is one."""
    if error.field == "search_space" and len(set(paths)) == 1:
        return SearchError(f"search_space.{paths[0]}", str(error))
    return error


@dataclass(frozen=True, slots=True)
class _Base:
    """`sound` are the parts that no axis reaches into, validated once for all points."""

    plain: Mapping[str, Any]
    sound: Mapping[str, Any]

    @classmethod
    def of(cls, base: Mapping[str, Any], axes: Sequence[str]) -> "_Base":
        reached = {path.partition(".")[0] for path in axes}
        apart = [name for name in base if name not in reached]
        try:
            policy = RuntimePolicy.model_validate(base)
        except ValidationError:  # which an axis may mend
            return cls(base, {name: base[name] for name in apart})
        return cls(base, {name: getattr(policy, name) for name in apart})


def _variant(
    base: _Base, space: Mapping[str, Sequence[Any]], axes: Sequence[str], point: Sequence[int]
) -> Variant:
    plain = dict(base.plain)
    for path, index in zip(axes, point, strict=True):
        _set(plain, path, space[path][index])
    try:
        return Variant(plain, RuntimePolicy.model_validate({**plain, **base.sound}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        axis = next((path for path in axes if _within(where, path) or _within(path, where)), None)
        field = "search_space" if axis is None else f"search_space.{axis}"
        unknown = first["type"] == "extra_forbidden"
        message = "unknown field" if unknown else str(first["msg"]).removeprefix("Value error, ")
        raise SearchError(field, f"{where}: {message}" if where else message) from error


def _within(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.")


def _set(plain: dict[str, Any], path: str, value: Any) -> None:
    """Change `plain`, with copies of the groups on the way: others have the originals too."""
    *groups, name = path.split(".")
    at = plain
    for group in groups:
        inner = at.get(group, {})
        if not isinstance(inner, dict):
            raise SearchError(f"search_space.{path}", f"{group} is no group of fields")
        at[group] = at = dict(inner)
    if not name:
        raise SearchError(f"search_space.{path}", "an axis is a path such as sampling.temperature")
    at[name] = value


def best(scores: Sequence[Score]) -> int:
    """Index of the best: most passed, then score, then speed; the first of equals. What never ran is last."""
    return max(range(len(scores)), key=lambda index: scores[index].rank)
