"""How well behaviours are told and corrected on texts that they were not made from.

    python tests/bench/behaviors.py [--url http://127.0.0.1:8000 --key KEY --home FOLDER --model FOLDER]
        [--prompts 24] [--tokens 64] [--only verbosity|lists|formality] [--markdown FILE]

Asks a running server that has an autoencoder (`steersman sae train`), by default one of its own, whose
autoencoder it trains first. Every other pair of a data set makes a
behaviour, the others judge it. Told: AUROC of the score in the autoencoder's latents and of a plain probe,
the mean difference of the same pairs' states, over means and over peaks of drift; and how often texts drift
at the calibrated threshold, reviews among them, which are about none of these behaviours. Corrected: answers
to held-out prompts, monitored alone and in each way of correcting. Whether an answer drifts is judged
afterwards, by the states of its final text without steering: whether it ever did, and whether it still does
at its end, since a correction from the next token on comes after the drift. Beside it stands what the server
itself reported.
Perplexity is that of the answers under the unsteered model. Intervals are 95 %, from resampled texts.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from steering.drift import drift
from steering.sae.baseline import Baseline
from steering.sae.load import load as load_sae
from steering.train.auroc import auroc
from steering.train.pairs import Answer, Pair, answer, read_jsonl
from tests.bench.serve import HERE, REPO, _machine
from tests.bench.watched_server import add_arguments, watched_server

# Behaviour → its data set, and whether the negative answers are those that show it.
SOURCES = {
    "verbosity": ("brevity", True),
    "lists": ("format_rigidity", False),
    "formality": ("tone_control", False),
}
# Way of correcting → what the request says; NAME stands for the behaviour.
MODES: dict[str, dict[str, Any]] = {
    "none (monitor)": {"behavior_names": ["NAME"], "behavior_mode": "monitor"},
    "regenerate": {"behavior_names": ["NAME"], "behavior_mode": "regenerate"},
    "online": {"behavior_names": ["NAME"], "behavior_mode": "online"},
    "force_steering": {"force_steering": ["NAME"]},
}
TEXTS = 64  # of one request for states
RESAMPLES = 2000

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Score = Callable[[Array], Wide]


@dataclass(frozen=True)
class Made:
    """A behaviour as the server made it, and its score of states `[tokens, hidden]`."""

    name: str
    layer: int
    baseline: Baseline
    score: Score


@dataclass(frozen=True)
class Said:
    """One answer: the text, what the server reported of the behaviour, and how long it took."""

    text: str
    reported: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer, and where the answer lies in its tokens."""

    text: str
    answer: Answer


class Asked:
    """A running server, and the tokenizer of its model."""

    def __init__(self, http: httpx.Client, tokenizer: Any, model: str) -> None:
        self._http, self._tokenizer, self._model = http, tokenizer, model

    def ok(self, method: str, path: str, **body: Any) -> httpx.Response:
        response = self._http.request(method, path, **({"json": body} if body else {}))
        if response.status_code != httpx.codes.OK:
            sys.exit(f"{method} {path}: {response.status_code} {response.text}")
        return response

    def encoded(self, prompt: str, text: str) -> Encoded:
        """As the server reads a user's message and its answer."""
        messages = [{"role": "user", "content": prompt}]
        head = prompt
        if getattr(self._tokenizer, "chat_template", None):
            head = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        found = answer(lambda part: self._tokenizer.encode(part, add_special_tokens=False), head, text)
        return Encoded(head + text, found)

    def states(self, texts: Sequence[Encoded], layer: int) -> list[Array]:
        """`[tokens, hidden]` of the tokens of each answer."""
        found: list[Array] = []
        for first in range(0, len(texts), TEXTS):
            batch = texts[first : first + TEXTS]
            asked = {"texts": [each.text for each in batch], "layer": layer}
            tensors = load(self.ok("POST", "/sae/states", **asked).content)
            for index, each in enumerate(batch):
                own = tensors["text"] == index
                if tensors["tokens"][own].tolist() != list(each.answer.tokens[1:]):
                    sys.exit(f"the server reads other tokens than this tokenizer in {each.text!r}")
                # Without the text's first token, position p is line p - 1.
                found.append(tensors["states"][own][each.answer.start : each.answer.end])
        return found

    def log_likelihoods(self, each: Encoded) -> list[float]:
        """Of the answer's tokens, in nats, without steering."""
        text = each.answer
        body = {"model": self._model, "prompt": list(text.tokens), "max_tokens": 1, "prompt_logprobs": 0}
        choice = self.ok("POST", "/v1/completions", **body).json()["choices"][0]
        steps = choice["prompt_logprobs"][text.start + 1 : text.end + 1]
        return [
            step[str(token)]["logprob"]
            for step, token in zip(steps, text.tokens[text.start + 1 :], strict=True)
        ]

    def said(self, pair: Pair, seed: int, name: str, tokens: int, mode: Mapping[str, Any]) -> Said:
        """The same seed in every mode, so that they differ by what corrects."""
        body = {key: [name] if value == ["NAME"] else value for key, value in mode.items()}
        body |= {"prompt": pair.prompt, "max_new_tokens": tokens, "seed": seed, "stream": False}
        began = time.monotonic()
        result = self.ok("POST", "/sae/generate", **body).json()
        reported = next((each for each in result["behaviors"] if each["name"] == name), {})
        return Said(result["text"], reported, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--prompts", type=int, default=24, help="of the held-out half, to be answered")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--only", choices=sorted(SOURCES), action="append")
    parser.add_argument("--markdown", type=Path, help="also append the tables to this file")
    args = parser.parse_args()
    told, corrected = [_TOLD, "|---" * (_TOLD.count("|") - 1) + "|"], list[str]()
    facts = []
    with watched_server(args) as served:
        headers = {"authorization": f"Bearer {served.key}", "accept": "application/json"}
        with httpx.Client(base_url=served.url, headers=headers, timeout=600) as http:
            asked = Asked(http, _tokenizer(served.model), _served(http))
            for name in args.only or SOURCES:
                row, fact, lines = _behaviour(asked, name, served.home, args)
                told.append(row)
                facts.append(fact)
                corrected += lines
    title = f"## Behaviours: {datetime.now(UTC):%Y-%m-%d}, {_machine()}\n"
    lines = [title, "AUROC on held-out texts, and how often they drift:\n", *told, "", *facts, "", *corrected]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _served(http: httpx.Client) -> str:
    return str(http.get("/v1/models").json()["data"][0]["id"])


def _behaviour(asked: Asked, name: str, home: Path, args: argparse.Namespace) -> tuple[str, str, list[str]]:
    """The row of the first table, a line of facts, and the second table."""
    learnt, held = split(name)
    label, began = f"bench {name} {time.time():.0f}", time.monotonic()
    body = {
        "behavior_name": label,
        "prompts": [pair.prompt for pair in learnt],
        "positive_answers": [pair.positive for pair in learnt],
        "negative_answers": [pair.negative for pair in learnt],
    }
    answered = asked.ok("POST", "/behaviors/create", **body).json()
    seconds = time.monotonic() - began
    try:
        made = _made(label, answered, home)
        evidence = made.baseline.evidence
        fact = (
            f"{name}: made from {len(learnt)} pairs in {seconds:.0f} s, {len(made.baseline.latents)} latents"
            f" of {answered['sae_id']} at layer {made.layer}, threshold {made.baseline.threshold:.2f}; its"
            f" own cross-validation says AUROC {_or_none(evidence.auroc)}, of peaks"
            f" {_or_none(evidence.peak_auroc)}, false positives {evidence.false_positive_rate:.2f}, hits"
            f" {evidence.true_positive_rate:.2f}; strength {answered['steering_strength']:.2f}.\n"
        )
        row = _told(asked, name, made, learnt, held)
        return row, fact, _corrected(asked, name, made, held[: args.prompts], args.tokens)
    finally:
        asked.ok("DELETE", f"/behaviors/{answered['id']}")
        asked.ok("DELETE", f"/steering/vectors/{answered['steering_vector_id']}")


def split(name: str) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Every other pair to learn from, the rest held out; `positive` shows the behaviour."""
    source, turned = SOURCES[name]
    pairs = read_jsonl((REPO / "steering" / "presets" / f"{source}.jsonl").read_text())
    if turned:
        pairs = tuple(Pair(pair.prompt, pair.negative or "", pair.positive) for pair in pairs)
    return pairs[::2], pairs[1::2]


def _made(label: str, answered: Mapping[str, Any], home: Path) -> Made:
    sae = load_sae(home / "saes" / answered["sae_id"])
    baseline = Baseline.decode(answered["sae_baseline"])
    if sae.digest != baseline.sae:
        sys.exit(f"{home} holds another autoencoder {answered['sae_id']!r} than the server: give its --home")

    def score(rows: Array) -> Wide:
        return baseline.scores(sae.encode_some(torch.from_numpy(rows), baseline.latents).numpy())

    return Made(label, int(answered["layer"]), baseline, score)


_TOLD = (
    "| behaviour | texts | latents, means | latents, peaks | probe, means | probe, peaks"
    " | drift: with it | without it | reviews |"
)


def _told(asked: Asked, name: str, made: Made, learnt: Sequence[Pair], held: Sequence[Pair]) -> str:
    def states(pairs: Sequence[Pair], *, positive: bool) -> list[Array]:
        texts = [pair.positive if positive else pair.negative or "" for pair in pairs]
        encoded = [asked.encoded(pair.prompt, text) for pair, text in zip(pairs, texts, strict=True)]
        return asked.states(encoded, made.layer)

    above, below = states(held, positive=True), states(held, positive=False)
    probe = mean_difference(states(learnt, positive=True), states(learnt, positive=False))
    cells = [
        area([reduce(score(rows)) for rows in above], [reduce(score(rows)) for rows in below])
        for score in (made.score, probe)
        for reduce in (_mean, peak)
    ]
    reviews = read_jsonl((HERE / "data" / "sentiment.jsonl").read_text())[1::2]
    beside = states(reviews, positive=True) + states(reviews, positive=False)
    cells += [
        share([peak(made.score(rows)) > made.baseline.threshold for rows in each])
        for each in (above, below, beside)
    ]
    return f"| {name} | {2 * len(held)} | {' | '.join(cells)} |"


def _corrected(asked: Asked, name: str, made: Made, held: Sequence[Pair], tokens: int) -> list[str]:
    lines = [
        f"Answers to {len(held)} held-out prompts, {name}:\n",
        "| correction | ever | at its end | reported | corrected | highest | perplexity | tokens | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mode, body in MODES.items():
        answers = [asked.said(pair, seed, made.name, tokens, body) for seed, pair in enumerate(held)]
        texts = [
            asked.encoded(pair.prompt, said.text)
            for pair, said in zip(held, answers, strict=True)
            if said.text
        ]
        levels = [drift(made.score(rows)) for rows in asked.states(texts, made.layer)]
        peaks = [float(each.max()) for each in levels]
        without = [False] * (len(held) - len(texts))  # an answer without a token does not drift
        drifted = [value > made.baseline.threshold for value in peaks] + without
        drifting = [each[-1] > made.baseline.threshold for each in levels] + without
        lost = [-value for each in texts for value in asked.log_likelihoods(each)]
        cells = [
            share(drifted),
            share(drifting),
            share([bool(said.reported.get("drifted")) for said in answers]),
            share([bool(said.reported.get("corrected")) for said in answers]),
            f"{np.mean(peaks):.2f}" if peaks else "–",
            f"{math.exp(np.mean(lost)):.1f}" if lost else "–",
            f"{np.mean([each.answer.end - each.answer.start for each in texts]):.0f}" if texts else "0",
            f"{np.median([said.seconds for said in answers]):.2f}",
        ]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
        print(f"{name}: {lines[-1]}", file=sys.stderr, flush=True)
    return [*lines, ""]


def mean_difference(positive: Sequence[Array], negative: Sequence[Array]) -> Score:
    """A probe along the difference of mean states, in deviations of texts without the behaviour."""
    above, below = (np.stack([rows.mean(axis=0) for rows in each]) for each in (positive, negative))
    direction = (above.mean(axis=0) - below.mean(axis=0)).astype(np.float64)
    without = below @ direction
    middle, deviation = float(without.mean()), float(without.std(ddof=1))
    return lambda rows: np.asarray((rows @ direction - middle) / deviation, np.float64)


def _mean(scores: Wide) -> float:
    return float(scores.mean())


def peak(scores: Wide) -> float:
    return float(drift(scores).max())


def area(above: Sequence[float], below: Sequence[float]) -> str:
    """AUROC, with its interval: texts of both classes are drawn anew."""
    positive, negative, rng = np.array(above), np.array(below), np.random.default_rng(0)
    drawn = [auroc(*(rng.choice(each, len(each)) for each in (positive, negative))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"**{auroc(positive, negative):.3f}** ({low:.3f}–{high:.3f})"


def share(values: Sequence[bool]) -> str:
    """In per cent, with its interval."""
    each, rng = np.array(values, np.float64), np.random.default_rng(0)
    drawn = each[rng.integers(0, len(each), (RESAMPLES, len(each)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"**{100 * each.mean():.0f} %** ({100 * low:.0f}–{100 * high:.0f})"


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
