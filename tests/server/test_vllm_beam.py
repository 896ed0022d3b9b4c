"""Beam search on a real engine, against Hugging Face's on the same weights in float32."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import xgrammar
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import CompletionOutput, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from server.vllm_beam import BeamParams, BeamSearch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated:DeprecationWarning"),  # vLLM's call
]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "capital": {"type": "boolean"},
    },
    "required": ["name", "capital"],
    "additionalProperties": False,
}
CONVERSATIONS = ("Name a colour.", "Describe Paris as JSON.")


@pytest.fixture(scope="module")
async def engine(model_path: Path) -> AsyncIterator[AsyncLLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"))
        args = AsyncEngineArgs(
            model=str(model_path),
            dtype="float32",
            enforce_eager=True,
            gpu_memory_utilization=0.3,
            max_model_len=1024,
        )
        engine = AsyncLLM.from_engine_args(args)
    sockets = engine.engine_core.resources.ctx
    yield engine
    engine.shutdown()
    sockets.destroy(linger=0)  # vLLM leaves that to the garbage collector


@pytest.fixture(scope="module")
def beam_search(engine: AsyncLLM) -> BeamSearch:
    return BeamSearch(engine, engine.renderer)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def prompt_of(tokenizer: Any, text: str) -> list[int]:
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


async def search(beam_search: BeamSearch, ids: list[int], **params: Any) -> list[CompletionOutput]:
    outputs = [o async for o in beam_search(tokens_input(ids), "test", BeamParams(**params))]
    (output,) = outputs
    assert output.finished and output.prompt_token_ids == ids
    return output.outputs


def allowed_by(tokenizer: Any, vocab_size: int, compile_: Callable[[Any], Any], start: int) -> Any:
    """What `prefix_allowed_tokens_fn` needs, each prefix read anew by xgrammar."""
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    compiled = compile_(xgrammar.GrammarCompiler(info))

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        matcher = xgrammar.GrammarMatcher(compiled)
        for token in ids[start:].tolist():
            if not matcher.accept_token(token):
                return [tokenizer.eos_token_id]  # a beam without hope: HF keeps it at −inf
        if matcher.is_terminated():
            return [tokenizer.eos_token_id]
        row = xgrammar.allocate_token_bitmask(1, vocab_size)
        matcher.fill_next_token_bitmask(row, 0)
        bits = np.unpackbits(row[0].numpy().view(np.uint8), bitorder="little")
        return np.flatnonzero(bits[:vocab_size]).tolist()

    return allowed


def reference_beams(
    model: Any, ids: list[int], width: int, max_tokens: int, **options: Any
) -> list[tuple[list[int], float]]:
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_tokens,
            do_sample=False,
            early_stopping=False,
            temperature=None,
            top_p=None,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    beams = []
    for tokens, score in zip(found.sequences[:, len(ids) :].tolist(), found.sequences_scores, strict=True):
        end = tokens.index(2) + 1 if 2 in tokens else len(tokens)
        if score > -1e8:
            beams.append((tokens[:end], float(score)))
    return beams


def score(beam: CompletionOutput, penalty: float) -> float:
    return beam.cumulative_logprob / len(beam.token_ids) ** penalty


def assert_same(beams: list[CompletionOutput], expected: list[tuple[list[int], float]], penalty: float):
    assert [list(beam.token_ids) for beam in beams] == [tokens for tokens, _ in expected]
    for beam, (_, value) in zip(beams, expected, strict=True):
        assert score(beam, penalty) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "width", "penalty"),
    [
        (CONVERSATIONS[0], 1, 1.0),
        (CONVERSATIONS[0], 4, 0.0),
        (CONVERSATIONS[1], 2, 1.0),
        (CONVERSATIONS[1], 4, 2.0),
    ],
)
async def test_free_beams_are_those_of_the_reference(  # noqa: PLR0917  # fixtures and parameters
    beam_search: BeamSearch, reference: Any, tokenizer: Any, text: str, width: int, penalty: float
):
    """The same token sequences, in the same order, with the same scores."""
    ids = prompt_of(tokenizer, text)
    beams = await search(beam_search, ids, beam_width=width, n=width, max_tokens=10, length_penalty=penalty)
    if width == 1:  # HF's num_beams=1 is greedy search, which has no sequence score
        greedy = reference.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, len(ids) :]
        assert list(beams[0].token_ids) == greedy.tolist()
    else:
        assert_same(beams, reference_beams(reference, ids, width, 10, length_penalty=penalty), penalty)


async def test_constrained_beams_are_those_of_the_reference(
    beam_search: BeamSearch, reference: Any, tokenizer: Any
):
    """Masks act on every beam and leave scores unnormalised, and each finished beam fits the schema."""
    ids = prompt_of(tokenizer, CONVERSATIONS[1])
    outputs = StructuredOutputsParams(json=SCHEMA)
    beams = await search(beam_search, ids, beam_width=3, n=3, max_tokens=28, structured_outputs=outputs)
    allowed = allowed_by(
        tokenizer, reference.config.vocab_size, lambda c: c.compile_json_schema(json.dumps(SCHEMA)), len(ids)
    )
    assert_same(beams, reference_beams(reference, ids, 3, 28, prefix_allowed_tokens_fn=allowed), 1.0)
    finished = [beam for beam in beams if beam.finish_reason == "stop"]
    assert finished
    for beam in finished:
        jsonschema.validate(json.loads(beam.text), SCHEMA)


@pytest.mark.parametrize("pattern", ["(qx|zw|vv|kj){3}", r"[0-9]{2}-[xyz]{2}"])
async def test_unlikely_masks_are_searched_exactly(
    beam_search: BeamSearch, reference: Any, tokenizer: Any, pattern: str
):
    """Where the mask allows none of the listed tokens, its best ones are found all the same."""
    ids = prompt_of(tokenizer, CONVERSATIONS[0])
    outputs = StructuredOutputsParams(regex=pattern)
    beams = await search(beam_search, ids, beam_width=3, n=3, max_tokens=12, structured_outputs=outputs)
    allowed = allowed_by(tokenizer, reference.config.vocab_size, lambda c: c.compile_regex(pattern), len(ids))
    assert_same(beams, reference_beams(reference, ids, 3, 12, prefix_allowed_tokens_fn=allowed), 1.0)


async def test_more_beams_than_listed_tokens(beam_search: BeamSearch, reference: Any, tokenizer: Any):
    """A step that needs more candidates than the engine lists log-probabilities is exact too."""
    ids = prompt_of(tokenizer, CONVERSATIONS[0])
    beams = await search(beam_search, ids, beam_width=16, n=16, max_tokens=2)
    assert_same(beams, reference_beams(reference, ids, 16, 2), 1.0)


async def test_few_texts_give_few_beams(beam_search: BeamSearch, tokenizer: Any):
    """A constraint with two texts returns both, each once."""
    ids = prompt_of(tokenizer, CONVERSATIONS[0])
    outputs = StructuredOutputsParams(choice=["red", "ultramarine"])
    beams = await search(beam_search, ids, beam_width=4, n=4, max_tokens=12, structured_outputs=outputs)
    texts = [beam.text for beam in beams if beam.finish_reason == "stop"]
    assert len(texts) == len(beams)
    assert set(texts) == {"red", "ultramarine"}


async def test_stop_strings_end_a_beam(beam_search: BeamSearch, tokenizer: Any):
    """A beam ends at the first stop string, whose text is left out unless asked for."""
    ids = prompt_of(tokenizer, "Count from one to ten in digits, with commas.")
    plain = (await search(beam_search, ids, beam_width=2, max_tokens=24))[0].text
    stop = plain[len(plain) // 2 :][:2]
    (cut,) = await search(beam_search, ids, beam_width=1, max_tokens=24, stop=[stop])
    (kept,) = await search(
        beam_search, ids, beam_width=1, max_tokens=24, stop=[stop], include_stop_str_in_output=True
    )
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert stop not in cut.text
    assert kept.text == cut.text + stop


async def test_stop_tokens_and_ignored_ends(beam_search: BeamSearch, tokenizer: Any):
    """A stop token ends a beam and stays out of its text; `ignore_eos` goes on to the length."""
    ids = prompt_of(tokenizer, CONVERSATIONS[0])
    (first,) = await search(beam_search, ids, beam_width=1, max_tokens=3)
    stop = first.token_ids[-1]
    (beam,) = await search(beam_search, ids, beam_width=1, max_tokens=9, stop_token_ids=[stop])
    assert (beam.finish_reason, beam.stop_reason, beam.token_ids[-1]) == ("stop", stop, stop)
    assert beam.text == tokenizer.decode(beam.token_ids[:-1])
    (whole,) = await search(beam_search, ids, beam_width=1, max_tokens=30, ignore_eos=True)
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 30)


async def test_logprobs_belong_to_the_chosen_tokens(beam_search: BeamSearch, tokenizer: Any):
    """Each position names its token, decoded, and the positions sum up to the beam's log-probability."""
    ids = prompt_of(tokenizer, CONVERSATIONS[1])
    outputs = StructuredOutputsParams(json_object=True)
    beams = await search(beam_search, ids, beam_width=2, n=2, max_tokens=8, structured_outputs=outputs)
    for beam in beams:
        chosen = [step[token] for token, step in zip(beam.token_ids, beam.logprobs, strict=True)]
        assert math.fsum(item.logprob for item in chosen) == pytest.approx(beam.cumulative_logprob)
        assert [item.decoded_token for item in chosen] == [tokenizer.decode([t]) for t in beam.token_ids]
        ordered = [[item.logprob for item in step.values()] for step in beam.logprobs]
        assert ordered == [sorted(values, reverse=True) for values in ordered]


async def test_neighbours_keep_their_logprobs(beam_search: BeamSearch, engine: AsyncLLM, tokenizer: Any):
    """A request that runs beside beams gets the log-probabilities it gets alone."""
    ids = prompt_of(tokenizer, "Tell me a story.")
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=3)

    async def neighbour(name: str) -> list[dict[int, float]]:
        async for output in engine.generate(tokens_input(ids), params.clone(), name):
            last = output.outputs[0]
        return [{token: item.logprob for token, item in step.items()} for step in last.logprobs]

    alone = await neighbour("alone")
    beams = search(
        beam_search,
        prompt_of(tokenizer, CONVERSATIONS[0]),
        beam_width=3,
        max_tokens=12,
        structured_outputs=StructuredOutputsParams(regex="(qx|zw|vv|kj){9}"),
    )
    beside, _ = await asyncio.gather(neighbour("beside"), beams)
    for before, after in zip(alone, beside, strict=True):
        assert after == pytest.approx(before, abs=1e-3)


async def test_leaving_aborts_the_engines_requests(beam_search: BeamSearch, engine: AsyncLLM, tokenizer: Any):
    """When the client disconnects, nothing of its search keeps running."""
    ids = prompt_of(tokenizer, CONVERSATIONS[0])
    task = asyncio.create_task(search(beam_search, ids, beam_width=4, max_tokens=500, ignore_eos=True))
    await asyncio.sleep(2)
    assert engine.output_processor.has_unfinished_requests()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engine.output_processor.has_unfinished_requests()


async def test_bad_parameters_are_the_clients_error(beam_search: BeamSearch, tokenizer: Any):
    """vLLM answers its own validation error with a 400."""
    with pytest.raises(VLLMValidationError, match="beam width"):
        BeamParams(beam_width=2, n=3, max_tokens=1)
    with pytest.raises(VLLMValidationError, match="parenthesis is not closed"):
        await search(
            beam_search,
            prompt_of(tokenizer, "x"),
            beam_width=2,
            max_tokens=4,
            structured_outputs=StructuredOutputsParams(regex="(a"),
        )
