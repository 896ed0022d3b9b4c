"""What travels to the worker with one request: which vectors to apply how, and which states to keep.

The server builds these values and sends them as JSON text under two keys of `SamplingParams.extra_args`;
vectors themselves are named by digest and were uploaded before. Nothing here imports torch or pydantic.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

STEERING_KEY: Final = "steersman_steering"
CAPTURE_KEY: Final = "steersman_capture"
# Only the server may set these: what they name was checked and uploaded by it.
RESERVED_KEYS: Final = frozenset({STEERING_KEY, CAPTURE_KEY})

SALT_PREFIX: Final = "steered-"  # of cache salts: likewise

CONFIG_KEY: Final = "steersman_steering"  # of vLLM's additional config
DEFAULT_ROWS: Final = 2048
SCHEMA_VERSION: Final = 1  # of the custom op and this wire form; salts vLLM's compile cache
MAX_TERMS: Final = 16
MAX_RANGES: Final = 4
MAX_WATCHES: Final = 8
MAX_SPANS: Final = 512
CAPTURE_LINES: Final = 64  # for each layer: so many spans of states can a GPU hold at once


def additional_config(rows: int = DEFAULT_ROWS) -> dict[str, Any]:
    """For `--additional-config`: vLLM's compile cache does not know which worker traced a graph."""
    return {CONFIG_KEY: {"schema": SCHEMA_VERSION, "rows": rows}}


class SpecError(ValueError):
    """`field` names the part that is wrong, the message says what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Operation(StrEnum):
    """How a term changes the residual stream x along its vector v, u = v / ‖v‖, c = x·u, strength s.

    Project-out is a clamp to [0, 0], replacement one to [value, value].
    """

    ADD = "add"  # x + s v
    NORM_ADD = "norm-preserving-add"  # y ‖x‖ / ‖y‖, y = x + s v
    CLAMP = "clamp"  # x + s (clip(c, low, high) - c) u
    UNITS = "units"  # x + Σ (act(a + s offset) - act(a)) write, a = x·read + bias
    LATENTS = "latents"  # x + s Σ (clip(act(a), low, high) - act(a)) write

    @property
    def bounds(self) -> bool:
        """Whether it promises something of the state that it leaves."""
        return self in (Operation.CLAMP, Operation.LATENTS)

    @property
    def sparse(self) -> bool:
        """Whether it acts on the vector's latents, not along its direction."""
        return self in (Operation.UNITS, Operation.LATENTS)


class Phase(StrEnum):
    ALL = "all"
    PROMPT = "prompt"
    GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which input tokens: a phase, cut to `[start, end)` in absolute positions.

    Negative positions count from the end of the prompt: -1 is its last token, the one from which the first
    generated token is sampled.
    """

    phase: Phase = Phase.ALL
    start: int | None = None
    end: int | None = None

    @property
    def relative(self) -> bool:
        """Whether the prompt's length matters."""
        bounds = (bound for bound in (self.start, self.end) if bound is not None)
        return self.phase is not Phase.ALL or any(bound < 0 for bound in bounds)

    def interval(self, prompt_tokens: int) -> tuple[float, float]:
        """Half-open interval of absolute positions; empty where low >= high."""
        low: float = prompt_tokens if self.phase is Phase.GENERATED else 0
        high: float = prompt_tokens if self.phase is Phase.PROMPT else math.inf
        if self.start is not None:
            low = max(low, self.start if self.start >= 0 else prompt_tokens + self.start)
        if self.end is not None:
            high = min(high, self.end if self.end >= 0 else prompt_tokens + self.end)
        return low, max(low, high)


class GateKind(StrEnum):
    COSINE = "cosine"  # 1 where cos(x, w) > threshold, w the direction of `vector`
    PROBE = "probe"  # sigmoid(slope (w·x + bias)), all three from the probe stored with `vector`
    RAMP = "ramp"  # clip(slope (threshold - (w·x + bias)), 0, 1), w and bias from that probe


@dataclass(frozen=True, slots=True)
class Gate:
    """A factor between 0 and 1 on a term, read from the state before the layer's own change.

    `inverted` takes 1 minus it. `slope` matters to a ramp only.
    """

    kind: GateKind
    vector: str
    threshold: float = 0.0
    slope: float = 1.0
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """One change at the output of each of `layers` (0-based decoder blocks). `vector` is a digest."""

    vector: str
    layers: tuple[int, ...]
    operation: Operation = Operation.ADD
    strength: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    tokens: Tokens = Tokens()
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Score what leaves block `layer` for each generated token, before steering, by the detector `vector`.

    `vector` is a digest. Once the scores' drift (see `steering.drift`) exceeds `threshold`, `terms` act on
    all tokens from the next one on; without terms it is only told.
    """

    vector: str
    layer: int
    threshold: float
    smoothing: float
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """All terms of one request, in the order in which they act within a layer. `trace` names its evidence.

    `prompt_tokens` says where the prompt ends if not at the end of what the engine is given as one: a beam's
    engine request begins with generated tokens.
    """

    terms: tuple[Term, ...]
    trace: str = ""
    prompt_tokens: int | None = None
    watches: tuple[Watch, ...] = ()

    def __post_init__(self) -> None:
        terms = self._all_terms
        if len(terms) > MAX_TERMS:
            raise SpecError("steering", f"at most {MAX_TERMS} vectors act on one request, not {len(terms)}")
        if len(self.watches) > MAX_WATCHES:
            raise SpecError(
                "behavior_names", f"at most {MAX_WATCHES} behaviors are watched, not {len(self.watches)}"
            )
        if len({term.tokens for term in terms}) > MAX_RANGES:
            raise SpecError("steering", f"at most {MAX_RANGES} different token ranges per request")
        for watch in self.watches:
            if not math.isfinite(watch.threshold) or not 0 < watch.smoothing <= 1:
                raise SpecError("threshold", "must be a finite number, and smoothing between 0 and 1")
        for term in terms:
            if not math.isfinite(term.strength):
                raise SpecError("strength", "must be a finite number")
            if not term.low <= term.high:
                raise SpecError("low", "must not exceed high")
            if term.gate and not (math.isfinite(term.gate.threshold) and math.isfinite(term.gate.slope)):
                raise SpecError("gate", "threshold and slope must be finite numbers")

    @property
    def vectors(self) -> tuple[str, ...]:
        """The digests that must be resident, each once."""
        terms = self._all_terms
        gates = [term.gate.vector for term in terms if term.gate]
        detectors = [watch.vector for watch in self.watches]
        return tuple(dict.fromkeys([*(term.vector for term in terms), *gates, *detectors]))

    @property
    def acts(self) -> bool:
        """Whether states may change; else it only watches, if it does anything."""
        return bool(self._all_terms)

    @property
    def idle(self) -> bool:
        """Whether the worker has nothing to do for it."""
        return not self.terms and not self.watches

    @property
    def _all_terms(self) -> tuple[Term, ...]:
        return (*self.terms, *(term for watch in self.watches for term in watch.terms))

    def fingerprint(self) -> str:
        """SHA-256 over what decides the states: the same for the same effect, whoever asks for it."""
        return _fingerprint(self.terms, tuple(watch for watch in self.watches if watch.terms))

    def cache_salt(self, callers: str | None, prompt_tokens: int = 0) -> str:
        """Separates the prefix-cache blocks of this request from all that are steered otherwise, or not.

        Where the prompt's length decides what is steered, prompts of other lengths are otherwise too: one
        request's generated text is part of the next one's prompt.
        """
        relative = any(term.tokens.relative for term in self.terms) or any(w.terms for w in self.watches)
        length = prompt_tokens if relative else ""
        parts = f"{self.fingerprint()}\n{length}\n{callers or ''}"
        return SALT_PREFIX + hashlib.sha256(parts.encode()).hexdigest()

    def encode(self) -> str:
        watches = [asdict(watch) | {"terms": _plain(watch.terms)} for watch in self.watches]
        parts = {"terms": _plain(self.terms), "trace": self.trace, "prompt_tokens": self.prompt_tokens}
        return json.dumps(parts | ({"watches": watches} if watches else {}), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> "SteeringSpec":
        """Raises SpecError for what `encode` does not write."""
        try:
            data = json.loads(text)
            terms = tuple(_term(item) for item in data["terms"])
            watches = tuple(_watch(item) for item in data.get("watches", ()))
            return cls(terms, str(data.get("trace", "")), _whole(data.get("prompt_tokens")), watches)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(STEERING_KEY, f"is not an encoded steering spec: {error!r}") from error


@lru_cache(maxsize=256)  # a request asks for it with its salt, its headers and its evidence
def _fingerprint(terms: tuple[Term, ...], watches: tuple[Watch, ...]) -> str:
    parts: list[Any] = [SCHEMA_VERSION, [asdict(term) for term in terms]]
    parts += [[asdict(watch) for watch in watches]] if watches else []
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(terms: tuple[Term, ...]) -> list[dict[str, object]]:
    return [{name: _finite(value) for name, value in asdict(term).items()} for term in terms]


def _finite(value: object) -> object:
    return None if isinstance(value, float) and math.isinf(value) else value


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _gate(item: dict[str, Any]) -> Gate:
    return Gate(
        kind=GateKind(item["kind"]),
        vector=str(item["vector"]),
        threshold=float(item.get("threshold", 0.0)),
        slope=float(item.get("slope", 1.0)),
        inverted=bool(item.get("inverted", False)),
    )


def _term(item: dict[str, Any]) -> Term:
    tokens, gate = item.get("tokens") or {}, item.get("gate")
    return Term(
        vector=str(item["vector"]),
        layers=tuple(int(layer) for layer in item["layers"]),
        operation=Operation(item.get("operation", "add")),
        strength=float(item.get("strength", 1.0)),
        low=-math.inf if item.get("low") is None else float(item["low"]),
        high=math.inf if item.get("high") is None else float(item["high"]),
        tokens=Tokens(
            Phase(tokens.get("phase", "all")), _whole(tokens.get("start")), _whole(tokens.get("end"))
        ),
        gate=_gate(gate) if gate else None,
    )


def _watch(item: dict[str, Any]) -> Watch:
    return Watch(
        vector=str(item["vector"]),
        layer=int(item["layer"]),
        threshold=float(item["threshold"]),
        smoothing=float(item["smoothing"]),
        terms=tuple(_term(each) for each in item.get("terms", ())),
    )


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """Keep the mean state over each of `spans`, `[start, end)` in absolute positions, at each of `layers`.

    States are read before the layer's own steering, or after it where `after` is set. Spans do not overlap.
    `id` names the result.
    """

    id: str
    layers: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    after: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.spans) <= MAX_SPANS:
            raise SpecError("spans", f"between 1 and {MAX_SPANS} spans per request")
        if any(not 0 <= start < end for start, end in self.spans):
            raise SpecError("spans", "each is [start, end) with 0 <= start < end")
        ordered = sorted(self.spans)
        if any(left[1] > right[0] for left, right in pairwise(ordered)):
            raise SpecError("spans", "must not overlap")

    def encode(self) -> str:
        return json.dumps({"id": self.id, "layers": self.layers, "spans": self.spans, "after": self.after})

    @classmethod
    def decode(cls, text: str) -> "CaptureSpec":
        """Raises SpecError for what `encode` does not write."""
        try:
            data = json.loads(text)
            spans = tuple((int(start), int(end)) for start, end in data["spans"])
            return cls(str(data["id"]), tuple(map(int, data["layers"])), spans, bool(data["after"]))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(CAPTURE_KEY, f"is not an encoded capture spec: {error!r}") from error


def default_layers(count: int) -> tuple[int, ...]:
    """Up to eight blocks from two thirds of the depth, as Axionic's clients choose them."""
    start = count * 2 // 3
    return tuple(range(start, min(start + 8, count)))


def checked_layers(layers: Sequence[int], count: int, field: str = "layer_idxs") -> tuple[int, ...]:
    """Raises SpecError for layers that the model does not have, or that repeat."""
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise SpecError(field, f"this model has layers 0 to {count - 1}, not {wrong[0]}")
    if len(set(layers)) != len(layers):
        raise SpecError(field, "names a layer twice")
    return tuple(layers)
