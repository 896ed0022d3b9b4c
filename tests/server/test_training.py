"""From pairs to a vector to be stored: what is asked of the engine, and what a client is told."""

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from server import training
from server.errors import InvalidRequest, SteersmanError
from server.steering import SteeredModel
from server.training import Tokenizer, Trainer, TrainRequest
from steering.spec import CaptureSpec
from steering.train.few_shot import FewShotError
from steering.train.optimised import Step
from steering.train.pairs import digest
from steering.train.result import Evidence, Trained
from steering.vector import Layer, SteeringVector

WIDTH, LAYERS = 4, 6
MODEL = SteeredModel("org/model", "f" * 64, LAYERS, WIDTH, np.full(LAYERS, 2, np.float32))
PAIRS = {
    "prompts": ["say ", "tell "],
    "positive_answers": ["yes!", "aye!!"],
    "negative_answers": ["no", "nay"],
}


class Engine:
    """States that depend on token and layer alone: `token * (layer + 1)` in the first two places."""

    def __init__(self) -> None:
        self.captures: list[tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...]]] = []
        self.running = self.most = 0
        self.failure: Exception | None = None

    async def capture(self, tokens, spans, layers):
        CaptureSpec("id", tuple(layers), tuple(spans))
        self.captures.append((tuple(tokens), tuple(spans), tuple(layers)))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.failure is not None and len(self.captures) > 2:
            raise self.failure
        states = np.zeros((len(spans), len(layers), WIDTH), np.float32)
        for row, (start, end) in enumerate(spans):
            for axis, layer in enumerate(layers):
                states[row, axis, 0] = np.mean(tokens[start:end]) * (layer + 1)
                states[row, axis, 1] = len(tokens) + start
        return SimpleNamespace(means=states)


def characters(text: str) -> list[int]:
    return [1, *map(ord, text)]


def raw(text: str) -> list[int]:
    return list(map(ord, text))


def letters(tokens) -> str:
    return "".join(map(chr, tokens))


def trainer(*, template: bool = False, background=("some neutral words", "other such words")):
    render = (lambda prompt: f"<{prompt}>") if template else None
    return Trainer(Engine(), Tokenizer(characters, raw, render, letters), MODEL, "folder", background)


def _learnt(*_: object) -> Trained:
    return Trained(SteeringVector.of({4: np.ones(WIDTH, np.float32)}), {4: Evidence(norm=2.0)})


class Progress:
    def __init__(self) -> None:
        self.told: list[dict] = []

    async def __call__(self, what) -> None:
        self.told.append(dict(what))


def request(**fields: object) -> TrainRequest:
    return TrainRequest.model_validate({**PAIRS, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "at least 1 item"),
        ({"prompts": ["one"]}, "lists of equal length"),
        ({"positive_answers": ["a"]}, "lists of equal length"),
        ({"negative_answers": ["a"]}, "lists of equal length"),
        ({"negative_answers": []}, "pair 1 has no negative answer; caa compares"),
        ({"negative_answers": ["a", ""]}, "at least 1 character"),
        ({"negative_answers": None}, "pair 1 has no negative answer; caa compares"),
        ({"negative_answers": None, "method": "asas"}, "pair 1 has no negative answer; asas compares"),
        ({"method": "dpo"}, "method must be one of caa, few-shot, asas, steering-perceptrons"),
        ({"layer_idxs": []}, "at least 1 item"),
        ({"fewshot_iterations": 5}, "fewshot_iterations has no effect on method caa, only on few-shot"),
        ({"method": "asas", "fewshot_lr": 0.1}, "fewshot_lr has no effect on method asas"),
        ({"method": "few-shot", "refine_steps": 3}, "refine_steps has no effect on method few-shot"),
        ({"sparsity_threshold": 0.5}, "sparsity_threshold has no effect on method caa"),
        ({"method": "asas", "refine_lr": 0.1}, "refine_lr has no effect without refine_steps"),
        ({"method": "asas", "sparsity_threshold": 1.5}, "less than or equal to 1"),
        ({"method": "few-shot", "fewshot_lr": float("nan")}, "finite"),
        ({"method": "few-shot", "fewshot_iterations": 0}, "greater than or equal to 1"),
        ({"name": "x" * 201}, "at most 200"),
        ({"prompts": ["p"] * 5001}, "at most 5000"),
        ({"colour": "red"}, "not permitted"),
    ],
)
def test_requests_that_cannot_be_learnt_from(fields, message):
    """Lists of different length, missing negatives and options of other methods are refused by name."""
    with pytest.raises(ValidationError, match=message):
        request(**fields)


def test_what_axionics_client_sends():
    """Explicit nulls, and a method in any case."""
    sent = {**PAIRS, "layer_idxs": None, "method": " CAA ", "name": None, "label": None}
    assert TrainRequest.model_validate(sent) == TrainRequest(**PAIRS)


@pytest.mark.parametrize("method", ["few-shot", "steering-perceptrons"])
@pytest.mark.parametrize("negatives", [None, []])
def test_positives_alone(method, negatives):
    """Some methods learn from positive answers alone; an empty list says the same as none."""
    assert [pair.negative for pair in request(method=method, negative_answers=negatives).pairs] == [None] * 2


def test_a_request_survives_the_queue():
    """What the job stores gives the same request again."""
    asked = request(method="asas", refine_steps=2, refine_lr=0.5, layer_idxs=[1], name="n")
    assert TrainRequest.model_validate(asked.model_dump()) == asked


def test_layers():
    """By default from two thirds of the depth; layers that the model has not, or twice, are refused."""
    assert trainer().layers(request()) == (4, 5)
    assert trainer().layers(request(layer_idxs=[5, 0])) == (5, 0)
    for layers in ([6], [-1], [1, 1]):
        with pytest.raises(InvalidRequest) as refused:
            trainer().layers(request(layer_idxs=layers))
        assert refused.value.param == "layer_idxs"


@pytest.mark.parametrize(
    ("fields", "fit"),
    [
        ({"method": "asas"}, 45),  # 2 answers of 24 states at 2 layers
        ({"method": "asas", "layer_idxs": [3]}, 91),
        ({"method": "steering-perceptrons", "negative_answers": None, "layer_idxs": [3]}, 182),
        ({"layer_idxs": [0, 1, 2, 3]}, 546),
    ],
)
def test_more_states_than_memory_holds(fields, fit, monkeypatch):
    """As many pairs as the message says are taken, and one more is refused, by what each method keeps."""
    monkeypatch.setattr(training, "_MAX_STATES", 2 * 35_000)

    def asked(count: int) -> TrainRequest:
        return request(**{name: ["text"] * count for name in PAIRS} | fields)

    trainer().layers(asked(fit))
    with pytest.raises(InvalidRequest, match=f"^the states of {fit + 1} pairs .*; {fit} pairs do") as refused:
        trainer().layers(asked(fit + 1))
    assert refused.value.param == "prompts"


def test_few_shot_gathers_no_states(monkeypatch):
    """What learns in a process of its own is not held to the memory of this one."""
    monkeypatch.setattr(training, "_MAX_STATES", 1)
    assert trainer().layers(request(method="few-shot")) == (4, 5)


async def test_caa():
    """The vector is the mean difference of the states that predict the answers, stored with its origin."""
    made, progress = trainer(), Progress()
    asked = request(layer_idxs=[0, 3], name="n", label="l", category="c")
    new = await made.train(asked, "account", progress)
    assert new.vector.layers.keys() == {0, 3}
    captured = {tokens: spans for tokens, spans, _ in made.engine.captures}
    # The start token and "say " are 5 tokens: positions 4 to 7 predict "yes!".
    assert captured[tuple(characters("say yes!"))] == ((4, 8),)
    assert {layers for _, _, layers in made.engine.captures} == {(0, 3)}
    means = [
        np.mean(characters(prompt + answer)[len(prompt) : -1])
        for answers in (PAIRS["positive_answers"], PAIRS["negative_answers"])
        for prompt, answer in zip(PAIRS["prompts"], answers, strict=True)
    ]
    expected = np.mean(means[:2]) - np.mean(means[2:])
    assert new.vector.layers[3].direction[0] == pytest.approx(4 * expected, rel=1e-4)
    assert (new.account_id, new.method, new.scale) == ("account", "caa", None)
    assert (new.name, new.label, new.category) == ("n", "l", "c")
    assert (new.model_name, new.model_fingerprint) == ("org/model", MODEL.fingerprint)
    assert new.dataset_digest == digest(asked.pairs)
    assert new.doses == pytest.approx({layer: norm / 2 for layer, norm in new.vector.norms.items()})
    assert new.evidence["3"]["pairs"] == 2
    states = [told for told in progress.told if told["stage"] == "states"]
    assert [(told["done"], told["total"]) for told in states] == [(n, 4) for n in range(1, 5)]


async def test_a_chat_template_wraps_the_prompt():
    """Where there is a template the prompt goes through it, without a second start token; or not."""
    made = trainer(template=True)
    await made.train(request(), None, Progress())
    assert tuple(raw("<say >yes!")) in {tokens for tokens, _, _ in made.engine.captures}
    plain = trainer(template=True)
    await plain.train(request(chat_template=False), None, Progress())
    assert tuple(characters("say yes!")) in {tokens for tokens, _, _ in plain.engine.captures}


@pytest.mark.parametrize("method", ["asas", "steering-perceptrons"])
async def test_methods_of_single_tokens(method, monkeypatch):
    """States of single positions, never of the first, reach the method by layer and class."""
    given = {}

    def learn(asked, above, below, on_layer):
        given.update(above=above, below=below)
        vector = SteeringVector.of({4: np.ones(WIDTH, np.float32)})
        return Trained(vector, {4: Evidence(norm=2.0)})

    monkeypatch.setattr(training, "_sparse" if method == "asas" else "_perceptron", learn)
    made = trainer()
    new = await made.train(request(method=method), None, Progress())
    assert new.method == method
    assert all(end == start + 1 for _, spans, _ in made.engine.captures for start, end in spans)
    assert all(start > 0 for _, spans, _ in made.engine.captures for start, _ in spans)
    assert given["above"].keys() == given["below"].keys() == {4, 5}
    assert len(given["above"][4].rows) == len("yes!") + len("aye!!")
    assert given["above"][4].numbers.tolist() == given["below"][4].numbers.tolist() == [0, 1]


async def test_background_stands_in_for_missing_negatives(monkeypatch):
    """Positives alone are told from states of neutral text."""
    below = {}

    def learn(asked, above, other, on_layer):
        below.update(other)
        return Trained(SteeringVector.of({4: np.ones(WIDTH, np.float32)}), {4: Evidence(norm=2.0)})

    monkeypatch.setattr(training, "_perceptron", learn)
    made = trainer()
    await made.train(request(method="steering-perceptrons", negative_answers=None), None, Progress())
    assert below[4].numbers.tolist() == [0, 1]
    assert tuple(characters("some neutral words")) in {tokens for tokens, _, _ in made.engine.captures}


@pytest.mark.parametrize(
    ("method", "arithmetic"), [("asas", training.sparse), ("steering-perceptrons", training.perceptron)]
)
async def test_learning_tells_its_layers(method, arithmetic, monkeypatch):
    """While a method learns, a client sees how many layers are done."""
    learnt = Layer(np.ones(WIDTH, np.float32)), Evidence(norm=2.0)
    monkeypatch.setattr(arithmetic, "_layer", lambda *_: learnt)
    made, progress = trainer(), Progress()
    await made.train(request(method=method), None, progress)
    told = [(each.get("layer"), each["done"], each["total"]) for each in progress.told[4:]]
    assert told == [(None, 0, 2), (4, 1, 2), (5, 2, 2)]


async def test_a_cancelled_job_stops_learning(monkeypatch):
    """Its thread ends after the layer at hand, so that it does not compute beside the next job."""
    begun, go, seen = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def learn(asked, above, below, on_layer):
        try:
            for layer in above:
                loop.call_soon_threadsafe(begun.set)
                go.wait(10)
                seen.append(layer)
                on_layer(layer)
        finally:
            loop.call_soon_threadsafe(begun.clear)

    monkeypatch.setattr(training, "_sparse", learn)
    job = asyncio.create_task(trainer().train(request(method="asas"), None, Progress()))
    await begun.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    go.set()
    async with asyncio.timeout(10):
        while begun.is_set():  # noqa: ASYNC110  # the thread may end late
            await asyncio.sleep(0.01)
    assert seen == [4]


async def test_single_positions_are_bounded():
    """Of a long answer at most 24 positions are kept, spread from its first to its last."""
    spans = training._single(training.Answer(tuple(range(500)), 9, 499))
    assert (len(spans), spans[0], spans[-1]) == (24, (9, 10), (498, 499))


async def test_captures_run_side_by_side_but_not_all_at_once():
    """Hundreds of texts go to the engine a few at a time."""
    made = trainer()
    many = {name: texts * 30 for name, texts in PAIRS.items()}
    await made.train(TrainRequest(**many), None, Progress())
    assert len(made.engine.captures) == 120
    assert 1 < made.engine.most <= 16


@pytest.mark.parametrize(("processes", "most"), [(1, 8), (2, 4), (100, 1)])
async def test_captures_fit_into_the_engines_buffer(processes, most, monkeypatch):
    """Texts in the engine at once take at most half of its capture lines, of all API processes together."""
    monkeypatch.setattr(training, "_sparse", _learnt)
    long = {"positive_answers": ["y" * 40] * 30, "negative_answers": ["n" * 40] * 30, "prompts": ["p "] * 30}
    made = replace(trainer(), processes=processes)
    await made.train(TrainRequest(**long, method="asas", layer_idxs=[4]), None, Progress())
    assert {len(spans) for _, spans, _ in made.engine.captures} == {24}
    assert made.engine.most == most
    assert most == 1 or most * 24 * processes <= 64 * LAYERS / 2


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (SteersmanError("a capture came back short"), SteersmanError, "a capture came back short"),
        (ValueError("the prompt is longer than 2048 tokens"), InvalidRequest, "longer than 2048 tokens"),
    ],
)
async def test_a_failed_capture_is_told_by_its_own_type(failure, kind, message):
    """What one of many captures raises is what training raises, and the others are not left running."""
    made = trainer()
    made.engine.failure = failure
    with pytest.raises(kind, match=message) as raised:
        await made.train(request(), None, Progress())
    assert isinstance(raised.value, InvalidRequest) == (kind is InvalidRequest)
    await asyncio.sleep(0)
    assert made.engine.running == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negative_answers": PAIRS["positive_answers"]}, "the direction is zero"),
        ({"prompts": ["", "tell "]}, "pair 1, positive"),
    ],
)
async def test_pairs_that_teach_nothing(fields, message):
    """Equal answers, and answers that nothing precedes, are the client's to put right."""
    made = Trainer(Engine(), Tokenizer(raw, raw, None, letters), MODEL, "folder", ())
    fields = {"positive_answers": ["y", "aye"], "negative_answers": ["n", "no"], **fields}
    if message.startswith("the direction"):
        fields["positive_answers"] = fields["negative_answers"]
    with pytest.raises(InvalidRequest, match=message) as refused:
        await made.train(request(**fields), None, Progress())
    assert refused.value.param == "prompts"


@pytest.mark.parametrize("method", ["caa", "asas", "steering-perceptrons"])
async def test_an_answer_without_states(method):
    """One that the first position alone predicts is named: that state is an attention sink, and left out."""
    made = trainer()
    with pytest.raises(InvalidRequest, match="write a longer prompt") as refused:
        await made.train(
            request(method=method, prompts=["say ", ""], negative_answers=["no", "n"]), None, Progress()
        )
    assert refused.value.param == "negative_answers.1"
    assert made.engine.captures == []


async def test_caa_leaves_the_first_position_out():
    """As all methods of states do, where an answer follows an empty prompt or one of a single token."""
    made = Trainer(Engine(), Tokenizer(characters, raw, None, letters), MODEL, "folder", ())
    await made.train(request(prompts=["", ""]), None, Progress())
    captured = {tokens: spans for tokens, spans, _ in made.engine.captures}
    assert captured[tuple(characters("aye!!"))] == ((1, 5),)


@pytest.mark.parametrize("method", ["caa", "few-shot"])
async def test_texts_longer_than_the_context(method, monkeypatch):
    """They are refused by name and before anything is computed, whichever method would learn from them."""
    made = replace(trainer(), max_tokens=10)
    with pytest.raises(InvalidRequest, match="has 11 tokens; this model takes at most 10") as refused:
        await made.train(request(method=method), None, Progress())
    assert refused.value.param == "prompts.1"
    assert made.engine.captures == []


async def test_few_shot_runs_in_its_own_process(monkeypatch):
    """The optimiser gets pairs as the model reads them and bounds from the norms, and tells its steps."""
    asked = []

    async def run(job, report):
        asked.append(job)
        report(Step((4,), 3, 0.5, 4, 40))
        await asyncio.sleep(0.01)
        return Trained(SteeringVector.of({4: np.ones(WIDTH, np.float32)}), {4: Evidence(norm=2.0, loss=0.5)})

    monkeypatch.setattr(training.few_shot, "run", run)
    made, progress = trainer(template=True), Progress()
    new = await made.train(
        request(method="few-shot", fewshot_iterations=7, fewshot_lr=0.3, negative_answers=None),
        None,
        progress,
    )
    (job,) = asked
    assert (job.model, job.layers, job.max_norms) == ("folder", (4, 5), {4: 2.0, 5: 2.0})
    assert (job.options.iterations, job.options.lr, job.add_special_tokens) == (7, 0.3, False)
    assert [(pair.prompt, pair.negative) for pair in job.pairs] == [("<say >", None), ("<tell >", None)]
    assert new.evidence == {"4": {"norm": 2.0, "loss": 0.5}}
    assert progress.told == [
        {"stage": "optimising", "layers": [4], "iteration": 3, "loss": 0.5, "done": 4, "total": 40}
    ]


async def test_an_optimiser_that_dies_is_no_fault_of_the_client(monkeypatch):
    """Only what the pairs caused becomes an invalid request."""

    async def run(job, report):
        raise FewShotError("status -9")

    monkeypatch.setattr(training.few_shot, "run", run)
    with pytest.raises(FewShotError):
        await trainer().train(request(method="few-shot"), None, Progress())
