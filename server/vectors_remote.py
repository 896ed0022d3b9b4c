"""`steersman vectors build-presets` and `evaluate`: what needs a running server, asked over HTTP."""

import json
import os
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from policies.steering import OWN_EXAMPLES
from server.columns import columns
from server.dose_response import Curve, Estimate, Summary, as_long_as, draw, random_like, summary
from server.remote import RemoteError, Server
from steering.files import read_flat
from steering.train.pairs import Pair, digest, read_jsonl
from steering.vector import SteeringVector

if TYPE_CHECKING:
    from argparse import _SubParsersAction

COMMANDS = frozenset({"build-presets", "evaluate"})
_PICTURES = (".png", ".svg", ".pdf")
_DEFAULT_URL = "http://127.0.0.1:8000"
_POLL_SECONDS = 0.5


def add_parsers(commands: "_SubParsersAction[ArgumentParser]") -> None:
    building = commands.add_parser("build-presets", help="make a running server's preset vectors ahead")
    building.add_argument("names", metavar="NAME", nargs="*", help="default: all that need no examples")
    trying = commands.add_parser("evaluate", help="dose-response of a vector on held-out pairs")
    trying.add_argument("id", metavar="VECTOR_ID")
    trying.add_argument("--pairs", metavar="FILE", required=True, help="JSON lines that it was not made from")
    trying._negative_number_matcher = re.compile(r"-[\d.]")  # noqa: SLF001  # as in Python 3.13: -2,-1 is a value
    trying.add_argument(
        "--strengths", type=_strengths, default=(-2, -1, 0, 1, 2), help="default: -2,-1,0,1,2"
    )
    trying.add_argument(
        "--random", metavar="N", type=int, default=3, help="random directions to compare with"
    )
    trying.add_argument(
        "--train", metavar="FILE", help="its training pairs: compare with a vector of their labels shuffled"
    )
    trying.add_argument("--seed", type=int, default=0, help="of random directions, labels and intervals")
    trying.add_argument("--raw", action="store_true", help="prompts are plain text, not a user's messages")
    trying.add_argument("--plot", metavar="FILE", help="write a picture, as its name ends: .png, .svg, .pdf")
    trying.add_argument("--json", metavar="FILE", help="write every figure; - is standard output")
    for parser in (building, trying):
        parser.add_argument("--url", default=os.environ.get("STEERSMAN_URL", _DEFAULT_URL), help=_help("URL"))
        parser.add_argument("--key", default=os.environ.get("STEERSMAN_KEY"), help=_help("KEY"))


def _help(name: str) -> str:
    return f"of the server; default: STEERSMAN_{name}" + (f", or {_DEFAULT_URL}" if name == "URL" else "")


def _strengths(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    try:
        server = Server(args.url, args.key)
        if args.vectors_command == "build-presets":
            _build(server, args.names)
        else:
            _evaluate(server, args)
    except (RemoteError, ValueError, OSError) as error:
        sys.stderr.write(f"steersman vectors: {error}\n")
        return 1
    return 0


def _build(server: Server, names: Sequence[str]) -> None:
    presets = server.get("/steering/presets")
    ready = [
        preset["name"]
        for preset in presets
        if preset["minimum_strength"] is not None and preset["name"] != OWN_EXAMPLES
    ]
    rows = [("PRESET", "ID", "LAYERS", "DOSE", "SECONDS")]
    for name in names or ready:
        sys.stderr.write(f"{name} …\n")
        began = time.monotonic()
        made = server.post(f"/steering/presets/{name}")
        dose = max((made["doses"] or {"": 0.0}).values())
        seconds = time.monotonic() - began
        rows.append((name, made["id"], ",".join(map(str, made["layers"])), f"{dose:.2f}", f"{seconds:.1f}"))
    sys.stdout.write(columns(rows))


def _evaluate(server: Server, args: Namespace) -> None:
    if args.plot:
        _check_plot(args.plot)
    pairs = _read(args.pairs)
    training = _read(args.train) if args.train else ()
    seen = len(set(pairs) & set(training))
    if seen:
        sys.stderr.write(f"{seen} of {len(pairs)} pairs are training pairs too, and so not held out.\n")
    path = f"/steering/vectors/{quote(args.id, safe='')}"
    described, vector = server.get(path), read_flat(server.get(f"{path}/download"))
    trial = _Trial(server, pairs, tuple(sorted({0.0, *args.strengths})), chat_template=not args.raw)
    curve = trial.curve("the vector", {"steering_vector_id": args.id})
    controls = _controls(trial, vector, curve, training, count=args.random, seed=args.seed)
    found = summary(curve, controls, seed=args.seed)
    name = described.get("label") or described.get("name") or args.id
    title = f"{name} ({described['method']}), {len(pairs)} held-out pairs"
    if args.json:
        report = {
            "steering_vector_id": args.id,
            "name": name,
            "method": described["method"],
            "model": described["model_name"],
            "layers": described["layers"],
            "pairs": len(pairs),
            "pairs_digest": digest(pairs),
            "seed": args.seed,
            "summary": found.plain(),
            "vector": _plain(curve),
            "controls": {kind: [_plain(each) for each in curves] for kind, curves in controls.items()},
        }
        _write(args.json, json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw(args.plot, title, curve, controls, found)
    if args.json != "-":
        sys.stdout.write(f"{title}\n\n{_table(found)}\n{_conclusion(found)}")


def _check_plot(path: str) -> None:
    """Before the minutes of measuring: that there will be a picture."""
    if not path.endswith(_PICTURES):
        raise ValueError(f"--plot writes {', '.join(_PICTURES)}, not {path!r}")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'steersman[plot]'")


def _read(path: str) -> tuple[Pair, ...]:
    pairs = read_jsonl(Path(path).read_text(encoding="utf-8"))
    for number, pair in enumerate(pairs, start=1):
        if pair.negative is None:
            raise ValueError(f"{path}: pair {number} has no negative answer, so it has no margin")
    return pairs


def _write(path: str, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Trial:
    """The same pairs at the same strengths, for any vector; `strengths` ascend, 0 among them."""

    server: Server
    pairs: Sequence[Pair]
    strengths: tuple[float, ...]
    chat_template: bool

    def curve(self, name: str, vector: Mapping[str, Any]) -> Curve:
        """With the cost on neutral text."""
        results = [self._measured(name, vector, strength, neutral=True) for strength in self.strengths]
        return _curve(self.strengths, results, neutral=True)

    def control(self, name: str, vector: SteeringVector, curve: Curve) -> Curve:
        """At strength 0 every vector does what `curve` shows there."""
        flat = {str(layer): held.direction.tolist() for layer, held in vector.layers.items()}
        unsteered = {"margins": curve.margins[curve.zero], "relative_dose": 0.0}
        results = [
            self._measured(name, {"vector": flat}, strength, neutral=False) if strength else unsteered
            for strength in self.strengths
        ]
        return _curve(self.strengths, results, neutral=False)

    def _measured(
        self, name: str, vector: Mapping[str, Any], strength: float, *, neutral: bool
    ) -> dict[str, Any]:
        """One request per strength, so that none takes long."""
        sys.stderr.write(f"{name} at strength {strength:g} …\n")
        body = {**vector, **self._pairs(), "strengths": [strength], "neutral": neutral}
        result: dict[str, Any] = self.server.post("/steering/evaluate/margins", body)["results"][0]
        return result

    def _pairs(self) -> dict[str, Any]:
        pairs = [
            {"prompt": pair.prompt, "positive_answer": pair.positive, "negative_answer": pair.negative}
            for pair in self.pairs
        ]
        return {"pairs": pairs, "chat_template": self.chat_template}


def _curve(strengths: tuple[float, ...], results: Sequence[Mapping[str, Any]], *, neutral: bool) -> Curve:
    return Curve(
        strengths=strengths,
        margins=np.array([result["margins"] for result in results], np.float64),
        doses=tuple(result["relative_dose"] for result in results),
        neutral=tuple(result["neutral"] for result in results) if neutral else None,
    )


def _controls(
    trial: _Trial, vector: SteeringVector, curve: Curve, training: Sequence[Pair], *, count: int, seed: int
) -> dict[str, list[Curve]]:
    """Vectors of equal length at each layer that know nothing of the trait."""
    rng, controls = np.random.default_rng(seed), dict[str, list[Curve]]()
    if count > 0:
        others = [random_like(vector, rng) for _ in range(count)]
        controls["random"] = [
            trial.control(f"random direction {number}", other, curve)
            for number, other in enumerate(others, start=1)
        ]
    if training:
        other = _shuffled(trial, vector, training, rng)
        controls["shuffled"] = [trial.control("shuffled labels", other, curve)]
    return controls


def _shuffled(
    trial: _Trial, vector: SteeringVector, training: Sequence[Pair], rng: np.random.Generator
) -> SteeringVector:
    """A CAA vector of `training` with the answers of every other pair, chosen at random, exchanged."""
    exchanged = rng.permutation(len(training)) % 2 == 1
    answers = [
        (pair.negative, pair.positive) if swap else (pair.positive, pair.negative)
        for pair, swap in zip(training, exchanged, strict=True)
    ]
    body = {
        "prompts": [pair.prompt for pair in training],
        "positive_answers": [positive for positive, _ in answers],
        "negative_answers": [negative for _, negative in answers],
        "method": "caa",
        "layer_idxs": sorted(vector.layers),
        "name": "shuffled labels",
        "chat_template": trial.chat_template,
        "background": True,
    }
    sys.stderr.write("shuffled labels: training …\n")
    job = trial.server.post("/steering/generate", body)["job_id"]
    try:
        made = _made(trial.server, job)
        flat = trial.server.get(f"/steering/vectors/{made}/download")
    finally:
        _discard(trial.server, job)
    rows = {layer: held.direction for layer, held in read_flat(flat).layers.items()}
    return as_long_as(vector, rows)


def _made(server: Server, job: str) -> str:
    """The vector of a job, when it is there. Raises RemoteError where the job fails."""
    while True:
        record = server.get(f"/steering/jobs/{job}")
        if record["status"] not in {"queued", "running"}:
            break
        time.sleep(_POLL_SECONDS)
    if not record["result"]:
        raise RemoteError(f"the training ended as {record['status']}: {record['error']}")
    return str(record["result"]["steering_vector_id"])


def _discard(server: Server, job: str) -> None:
    """Leave nothing of a job behind, wherever it stands."""
    with suppress(RemoteError):  # it has ended
        server.delete(f"/steering/jobs/{job}")
    result = server.get(f"/steering/jobs/{job}")["result"]
    if result:
        server.delete(f"/steering/vectors/{result['steering_vector_id']}")


def _plain(curve: Curve) -> dict[str, Any]:
    return {**asdict(curve), "margins": curve.margins.tolist()}


def _table(found: Summary) -> str:
    names = list(found.points[0].against)
    rows = [
        (
            "STRENGTH",
            "DOSE",
            "MARGIN",
            "SHIFT [95 %]",
            *(f"MINUS {name.upper()} [95 %]" for name in names),
            "CONTRARY",
            "NEUTRAL COST",
        )
    ]
    rows += [
        (
            f"{point.strength:g}",
            f"{point.dose:.2f}",
            f"{point.margin:+.3f}",
            _interval(point.shift),
            *(_interval(point.against[name]) for name in names),
            "-" if point.contrary is None else f"{point.contrary:.0%}",
            "-" if point.cost is None else f"{point.cost:+.3f}",
        )
        for point in found.points
    ]
    return columns(rows)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _conclusion(found: Summary) -> str:
    lines = [
        f"Spearman of strength and mean margin {found.monotone:+.2f}",
        f"Spearman of strength and a pair's own margin {found.monotone_pairs:+.2f} on average",
        f"Anti-steerable: the margin of {found.anti_steerable:.0%} of the pairs falls with strength",
    ]
    for name in found.points[0].against:
        beaten = [
            f"{point.strength:g}"
            for point in found.points
            if point.strength and point.against[name].beats_zero(point.strength)
        ]
        lines.append(f"Beats {name} at strengths {', '.join(beaten) or 'none'} (the interval excludes 0)")
    return "".join(f"{line}.\n" for line in lines)
