import asyncio
import contextlib
import os
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from steering.train import few_shot, optimised
from steering.train.few_shot import FewShotError, Request
from steering.train.optimised import Objective, Options, bound, optimise
from steering.train.pairs import Answer, EncodedPair, Pair, encoded
from steering.train.tail import Tail, _decoder, batches

HIDDEN, VOCABULARY, LAYERS = 32, 64, 4
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
IDS = {"bos_token_id": 0, "eos_token_id": 1}


def built(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def llama(**more):
    return LlamaConfig(**SHAPE | {"num_key_value_heads": 2} | IDS | more)


@pytest.fixture(scope="module")
def model():
    return built(llama())


def examples(negatives=True, seed=0):
    """Answers of many lengths, so that padding and batches matter."""
    random = np.random.default_rng(seed)

    def one(prompt):
        tokens = (*prompt, *random.integers(2, VOCABULARY, random.integers(1, 9)).tolist())
        return Answer(tokens, len(prompt) - 1, len(tokens) - 1)

    prompts = [random.integers(2, VOCABULARY, random.integers(1, 12)).tolist() for _ in range(6)]
    return [EncodedPair(one(prompt), one(prompt) if negatives else None) for prompt in prompts]


def served_loss(model, pairs, vectors, options):
    """The loss as its definition reads: each text alone, the whole model, hooks that add the vectors."""

    def adder(vector):
        def add(_module, _inputs, output):
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        return add

    with contextlib.ExitStack() as stack:
        for layer, vector in vectors.items():
            handle = Tail(model).blocks[layer].register_forward_hook(adder(torch.as_tensor(vector)))
            stack.callback(handle.remove)
        losses = []
        for answer, promoted in [(pair.positive, True) for pair in pairs] + [
            (pair.negative, False) for pair in pairs if pair.negative
        ]:
            with torch.no_grad():
                logits = model(torch.tensor([answer.tokens])).logits[0].double()
            total = 0.0
            for position in range(answer.start, answer.end):
                p = torch.softmax(options.coldness * logits[position], -1)[answer.tokens[position + 1]]
                total -= torch.log((p if promoted else 1 - p) + options.eps).item()
            losses.append(total / (answer.end - answer.start if options.per_token else 1))
    return float(np.mean(losses))


def objective(model, pairs, layers, **options):
    """Ready for vectors at `layers`."""
    made = Objective(Tail(model), pairs, Options(**options), "cpu")
    made.begin(layers)
    return made


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("per_token", [True, False])
def test_loss_is_that_of_the_served_model(model, negatives, per_token):
    """Batches, padding and the shortcut past lower blocks give the loss of the whole model with a hook."""
    pairs = examples(negatives)
    loss = objective(model, pairs, [1, 2], per_token=per_token)
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1)) * 2
    for vectors in ({}, {1: vector}, {2: vector}, {1: vector, 2: -vector}):
        expected = served_loss(model, pairs, vectors, loss.options)
        assert loss(vectors) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, head_dim=8, num_key_value_heads=2, sliding_window=4, query_pre_attn_scalar=8),
        Qwen3Config(**SHAPE, head_dim=8, num_key_value_heads=2),
        GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, **IDS),
        GPTNeoXConfig(**SHAPE),
        OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=HIDDEN, pad_token_id=1),
    ],
    ids=lambda config: config.model_type,
)
def test_architectures_need_no_code_of_their_own(config):
    """Caps on logits, sliding windows, learned positions and biases are the model's own affair."""
    other, pairs = built(config), examples()
    loss = objective(other, pairs, [1, 3])
    loss.tail.check(loss.batches[0], 1)
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    for layer in (1, 3):
        expected = served_loss(other, pairs, {layer: vector}, loss.options)
        assert loss({layer: vector}) == pytest.approx(expected, abs=1e-4)


# Llama's norms compute in float32 whatever the model's type is, which bounds what differences can show.
@pytest.mark.parametrize(
    ("config", "step", "tolerance"),
    [
        (GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, **IDS), 1e-5, 1e-6),
        (llama(), 1e-2, 1e-2),
    ],
    ids=["gpt2", "llama"],
)
def test_gradient_equals_finite_differences(config, step, tolerance):
    """In float64 the gradient along random directions is the difference quotient."""
    double, random = built(config).double(), torch.Generator().manual_seed(2)
    loss = objective(double, examples(), [1])
    vector = torch.randn(HIDDEN, generator=random, dtype=torch.float64).requires_grad_()
    value = loss({1: vector}, grad=True)
    assert value == pytest.approx(loss({1: vector.detach()}))
    for _ in range(4):
        along = torch.randn(HIDDEN, generator=random, dtype=torch.float64)
        ends = [loss({1: vector.detach() + way * along}) for way in (step, -step)]
        quotient = (ends[0] - ends[1]) / (2 * step)
        assert float(vector.grad @ along) == pytest.approx(quotient, rel=tolerance, abs=tolerance)


def test_model_is_left_as_it_was(model):
    """After training no hook, no replaced forward and no gradient stays on the model."""
    ids = torch.arange(2, 12)[None]
    before = model(ids).logits
    loss = objective(model, examples(), [1])
    optimise(loss, [1], {1: 5.0}, lambda _: None)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_loss_falls_and_is_reproduced_when_served(model):
    """The best loss is far below the start, is that of the returned vectors, and norms keep their bounds."""
    pairs, steps = examples(), []
    loss = objective(model, pairs, [1, 3], iterations=15)
    bounds = {1: 3.0, 3: 6.0}
    found = optimise(loss, [1, 3], bounds, steps.append)
    for layer, run in found.items():
        assert np.linalg.norm(run.direction) <= bounds[layer] * (1 + 1e-6)
        assert run.before == pytest.approx(served_loss(model, pairs, {}, loss.options), abs=1e-4)
        assert run.loss < run.before - 0.5
        vectors = {layer: run.direction}
        assert served_loss(model, pairs, vectors, loss.options) == pytest.approx(run.loss, abs=1e-4)
        mine = [step.loss for step in steps if layer in step.layers]
        assert run.loss == min(mine)
    assert [step.done for step in steps] == list(range(1, 33))
    assert {step.total for step in steps} == {32}


def test_positives_alone_are_enough(model):
    """Without negatives the promoted completions still become likelier."""
    found = optimise(objective(model, examples(negatives=False), [2]), [2], {2: 5.0}, lambda _: None)
    assert found[2].loss < found[2].before - 1.0


def test_best_vector_is_kept_when_steps_overshoot():
    """Where later steps make things worse the result is the vector that had the least loss."""
    seen, losses = [], [5.0, 3.0, 4.0, 2.0, 6.0]

    class Fixed:
        options = Options(iterations=4)
        mean_norms, capacity, draft = {2: 7.0}, 1, None
        tail = Tail(built(llama()))

        def begin(self, layers):
            pass

        def __call__(self, vectors, *, grad=False):
            if not vectors:
                return 9.0
            vectors[2].grad = torch.ones(HIDDEN)
            seen.append(vectors[2].detach().clone().numpy())
            return losses[len(seen) - 1]

    found = optimise(Fixed(), [2], {2: 5.0}, lambda _: None)[2]
    assert (found.loss, found.before, found.iterations) == (2.0, 9.0, 4)
    np.testing.assert_array_equal(found.direction, seen[3])


@pytest.mark.parametrize("target", [None, 11.7])
def test_a_draft_only_lends_gradients(model, target):
    """Steps by a bfloat16 copy end where exact ones do, and the loss stated is the exact one."""
    pairs, options = examples(), Options(target_loss=target)
    draft = Tail(built(llama()).to(torch.bfloat16))
    found = [
        optimise(Objective(Tail(model), pairs, options, "cpu", copy), [2], {2: 5.0}, lambda _: None)[2]
        for copy in (None, draft)
    ]
    assert found[1].loss == pytest.approx(found[0].loss, abs=0.02)
    for run in found:
        assert served_loss(model, pairs, {2: run.direction}, options) == pytest.approx(run.loss, abs=1e-4)


def test_states_are_computed_again_where_they_do_not_fit(model, monkeypatch):
    """Holding the states of one layer at a time changes nothing but the memory."""
    arguments = ([1, 2, 3], dict.fromkeys([1, 2, 3], 5.0), lambda _: None)
    made = Objective(Tail(model), examples(), Options(iterations=2), "cpu")
    plain = optimise(made, *arguments)
    monkeypatch.setattr(optimised, "_STATES", 1)
    assert made.capacity == 1
    for layer, run in optimise(made, *arguments).items():
        np.testing.assert_array_equal(run.direction, plain[layer].direction)


def test_target_loss_ends_a_run(model):
    """A run stops at the first loss that is low enough; its vector has that loss."""
    steps = []
    full = optimise(objective(model, examples(), [2]), [2], {2: 5.0}, steps.append)
    target = steps[8].loss
    found = optimise(objective(model, examples(), [2], target_loss=target), [2], {2: 5.0}, lambda _: None)
    assert full[2].loss < found[2].loss <= target
    assert found[2].iterations < full[2].iterations


def test_seed_decides_the_vector_and_layers_do_not_disturb_each_other(model):
    """The same seed gives the same bytes, whatever other layers are asked for; another seed, others."""
    alone = optimise(objective(model, examples(), [2]), [2], {2: 5.0}, lambda _: None)
    beside = optimise(objective(model, examples(), [1, 2]), [1, 2], {1: 5.0, 2: 5.0}, lambda _: None)
    other = optimise(objective(model, examples(), [2], seed=1), [2], {2: 5.0}, lambda _: None)
    np.testing.assert_array_equal(alone[2].direction, beside[2].direction)
    assert not np.allclose(alone[2].direction, other[2].direction)


def test_a_bound_only_shortens():
    """A vector longer than its bound gets that length, in place; a shorter one stays."""
    vector = torch.full((4,), 3.0)
    bound(vector, 3.0)
    assert vector.norm() == pytest.approx(3.0)
    bound(vector, 10.0)
    assert vector.norm() == pytest.approx(3.0)


def test_batches_hold_every_answer_once():
    """Small batches, in order of length, hold the same predictions as the answers do."""
    answers = [pair.positive for pair in examples()]
    made = batches(answers, "cpu", tokens=24)
    assert len(made) > 1
    assert all(batch.tokens.numel() <= 24 or len(batch.tokens) == 1 for batch in made)
    seen = {number: [] for number in range(len(answers))}
    for batch in made:
        before = batch.tokens.flatten()[batch.rows + 1]
        assert batch.mask.flatten()[batch.rows + 1].all()
        assert torch.equal(before, batch.targets)
        for number, target in zip(batch.texts.tolist(), batch.targets.tolist(), strict=True):
            seen[number].append(target)
    assert seen == {number: list(answer.targets) for number, answer in enumerate(answers)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its tokenizer on disk: one token per letter, and a start token."""
    path = tmp_path_factory.mktemp("tiny")
    letters = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz "]
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        path
    )
    built(llama()).save_pretrained(path)
    return path


PAIRS = (Pair("tell me", " yes sir", " no"), Pair("is it", " so be it"), Pair("a", "b", "c"))


async def test_process_returns_what_it_trained(folder):
    """The vector that comes back has, served by hook, the loss that its evidence states."""
    steps = []
    request = Request(str(folder), PAIRS, (1, 2), {1: 4.0, 2: 5.0}, Options(iterations=4))
    trained = await few_shot.run(request, steps.append)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    pairs = encoded(tokenizer.encode, PAIRS)
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layer in (1, 2):
        evidence = trained.evidence[layer]
        loss = served_loss(other, pairs, {layer: trained.vector.layers[layer].direction}, request.options)
        assert loss == pytest.approx(evidence.loss, abs=1e-4)
        assert evidence.loss < evidence.loss_before
        assert evidence.norm == pytest.approx(trained.vector.norms[layer])
        assert (evidence.pairs, evidence.iterations) == (3, 4)
    assert [step.done for step in steps] == list(range(1, 11))
    assert steps[-1].layers == (2,)


async def test_process_names_the_bad_pair(folder):
    """What the caller can put right comes back as ValueError with the reason itself."""
    request = Request(str(folder), (*PAIRS, Pair("a", "")), (1,), {1: 4.0})
    with pytest.raises(ValueError, match=r"^pair 4, positive: the answer '' adds no token"):
        await few_shot.run(request, lambda _: None)


def test_a_model_that_cannot_be_run_in_part(model, monkeypatch):
    """Is refused with the reason, as a bad pair is: it comes back to who asked as ValueError."""
    tail = Tail(model)
    batch = objective(model, examples(), [1]).batches[0]
    tail.check(batch, 1)
    monkeypatch.setattr(Tail, "logits", lambda self, hidden: torch.zeros(len(hidden), VOCABULARY))
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be run in part"):
        tail.check(batch, 1)
    with pytest.raises(ValueError, match="no list of 4 decoder blocks"):
        _decoder(model.lm_head, LAYERS)


async def test_cancelling_kills_the_process(folder, monkeypatch):
    """A cancelled job leaves no process and no file behind."""
    processes, started = [], asyncio.Event()
    create = asyncio.create_subprocess_exec

    async def remembered(*args, **kwargs):
        processes.append(await create(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remembered)
    request = Request(str(folder), PAIRS, (1,), {1: 4.0}, Options(iterations=100_000))
    task = asyncio.create_task(few_shot.run(request, lambda _: started.set()))
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes[0].returncode == -9
    with pytest.raises(ProcessLookupError):
        os.kill(processes[0].pid, 0)


async def test_failure_quotes_stderr(tmp_path, monkeypatch):
    """A process that dies is reported with its status and what it said last."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nyes noise | head -c 300000 >&2\necho the disk is full >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    request = Request("nowhere", PAIRS * 1000, (1,), {1: 4.0})
    with pytest.raises(FewShotError, match=r"(?s)status 3: .*the disk is full$"):
        await few_shot.run(request, lambda _: None)


def test_a_full_gpu_leaves_the_cpu(folder, monkeypatch):
    """Where the device lacks the memory for another copy of the model, the CPU does the work."""
    tried, train = [], few_shot._train

    def refusing(request, device, on_step):
        tried.append(device)
        if device == "cuda":
            raise torch.OutOfMemoryError
        return train(request, device, on_step)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(few_shot, "_train", refusing)
    try:
        few_shot.train(Request(str(folder), PAIRS, (1,), {1: 4.0}, Options(iterations=1)), lambda _: None)
    finally:
        torch.set_flush_denormal(False)  # of this whole process, where other tests run
    assert tried == ["cuda", "cpu"]


def test_requests_are_checked():
    """Bounds, layers, pairs and numbers that make no sense are refused before a process starts."""
    with pytest.raises(ValueError, match="bound for layer 2"):
        Request("m", PAIRS, (1, 2), {1: 4.0})
    with pytest.raises(ValueError, match="at least one pair"):
        Request("m", (), (1,), {1: 4.0})
    for wrong in ({"iterations": 0}, {"lr": float("nan")}, {"coldness": 0.0}, {"eps": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)
