"""What a request gets does not depend on who shares its batch.

Sixteen requests of all methods are posted one by one, then all at once, so that the engine decodes them as
rows of one batch: with a fixed seed each must come to the same tokens, and log-probabilities within 1e-4
(float32; a matrix product of another height rounds otherwise).

Kept sets cannot be seen from outside. They are shown equal to a reference by drawing: the next token after
one prompt is drawn 512 times for each method, all methods at once. The reference distribution is that of
Hugging Face transformers: the same weights, its own logits warpers. No draw may fall outside the reference's
kept set, no token of 3 % or more may be missing, which leaves 2e-7 to chance, and every frequency of five
expected draws or more must lie within five standard deviations: a set cut differently would show up in the
renormalised frequencies.
"""

import asyncio
import math

import pytest
import torch

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
PATTERN = "[a-z ]{20,60}[.]"
REQUESTS = [
    {"sampling_method": "greedy"},
    {"sampling_method": "top-k", "top_k": 20, "temperature": 0.9},
    {"sampling_method": "top-p", "top_p": 0.8},
    {"sampling_method": "min-p", "min_p": 0.1, "temperature": 1.5},
    {"sampling_method": "typical", "typical_p": 0.9},
    {"sampling_method": "typical", "typical_p": 0.4, "min_p": 0.05, "temperature": 1.3},
    {"sampling_method": "ads", "ads_subset_size": 8},
    {"sampling_method": "ads", "ads_subset_size": 32, "ads_beta": 0.9, "typical_p": 0.8},
    {"sampling_method": "guided-generation", "regex_pattern": PATTERN},
    {"sampling_method": "ads", "regex_pattern": PATTERN, "temperature": 1.2},
    {"sampling_method": "speculative-decoding", "top_k": 3},
    {"temperature": 1.0},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 1.0, "repetition_penalty": 1.3, "typical_p": 0.7},
    {"temperature": 1.0, "bad_words": ["river"], "min_p": 0.02},
    {"sampling_method": "greedy", "logit_bias": {"338": 5}},
]
TOPICS = ("rivers", "mountains", "bread", "winter")


def body_of(index):
    content = f"Write two sentences about {TOPICS[index % 4]}."
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 24,
        "seed": 1000 + index,
        "logprobs": True,
        "top_logprobs": 5,
        **REQUESTS[index],
    }


def tokens_of(response):
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["logprobs"]["content"]
    return [(token["token"], token["logprob"], token["top_logprobs"]) for token in content]


@pytest.fixture(scope="module")
async def alone(http):
    """Each request by itself."""
    return [tokens_of(await http.post(CHAT, json=body_of(index))) for index in range(len(REQUESTS))]


async def test_each_request_is_the_same_in_a_mixed_batch(ask, alone):
    """The same tokens and log-probabilities beside fifteen others as alone, three times over."""
    for _ in range(3):
        together = await ask.together([(CHAT, body_of(index)) for index in range(len(REQUESTS))])
        for index, response in enumerate(together):
            mixed = tokens_of(response)
            assert [token for token, _, _ in mixed] == [token for token, _, _ in alone[index]], REQUESTS[
                index
            ]
            for (_, there, tops), (_, here, others) in zip(mixed, alone[index], strict=True):
                assert there == pytest.approx(here, abs=1e-4)
                listed = [{top["token"]: top["logprob"] for top in group} for group in (tops, others)]
                assert [listed[0].get(token) for token in listed[1]] == pytest.approx(
                    list(listed[1].values()), abs=1e-4
                )


async def test_a_fixed_seed_repeats_and_another_differs(http, alone):
    """Alone, each request repeats exactly, log-probabilities included; a drawn one follows its seed."""
    for index in (1, 4, 6, 11):
        assert tokens_of(await http.post(CHAT, json=body_of(index))) == alone[index]
        other = await http.post(CHAT, json=body_of(index) | {"seed": 7})
        assert [token for token, _, _ in tokens_of(other)] != [token for token, _, _ in alone[index]]


async def test_greedy_rows_are_untouched_by_typical_and_ads_neighbours(ask, alone):
    """A greedy row between rows that the processors rewrite has the tokens it has alone."""
    rewritten = [4, 5, 6, 7, 13]
    requests = [(CHAT, body_of(index)) for index in [*rewritten, 0, *rewritten, 15, *rewritten]]
    responses = await ask.together(requests)
    for place, index in ((5, 0), (11, 15)):
        assert [token for token, _, _ in tokens_of(responses[place])] == [t for t, _, _ in alone[index]]


PROMPT = "My favourite thing to do on a sunny day is to"
DRAWS = {  # method → its fields, temperature 1.5 throughout
    "top-k": {"top_k": 12},
    "top-p": {"sampling_method": "top-p", "top_p": 0.6},
    "min-p": {"min_p": 0.15},
    "typical": {"typical_p": 0.5},
    "typical-narrow": {"typical_p": 0.2},
    "typical+min-p": {"typical_p": 0.7, "min_p": 0.2},
    "typical+top-k": {"typical_p": 0.8, "top_k": 10},
    "ads": {"sampling_method": "ads", "ads_subset_size": 10},
    "ads+top-p": {"sampling_method": "ads", "ads_subset_size": 32, "top_p": 0.5},
}


def warpers(fields):
    """Hugging Face's processors for `fields`, in this server's order: typical, min-p, top-k, top-p."""
    from transformers import generation as hf

    ads = fields.get("sampling_method") == "ads"
    top_k = fields.get("ads_subset_size") if ads else fields.get("top_k")
    made = []
    if "typical_p" in fields:
        made.append(hf.TypicalLogitsWarper(mass=fields["typical_p"]))
    if "min_p" in fields:
        made.append(hf.MinPLogitsWarper(min_p=fields["min_p"]))
    if top_k:
        made.append(hf.TopKLogitsWarper(top_k=top_k))
    return made


def reference(z, fields):
    """The distribution over the vocabulary that `fields` mean on one row of temperature-scaled logits."""
    from transformers import generation as hf

    row = z[None]
    for warper in warpers(fields):
        row = warper(None, row)
    if "top_p" in fields:  # under ADS on the whole row, and both results intersect
        ads = fields.get("sampling_method") == "ads"
        nucleus = hf.TopPLogitsWarper(top_p=fields["top_p"])(None, z[None] if ads else row)
        row = row.masked_fill(nucleus.isinf(), -math.inf)
    return row[0].softmax(-1)


@pytest.fixture(scope="module")
def logits(model_path):
    """Token ids of PROMPT, and the logits of the next token by transformers in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model_path)(PROMPT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0, -1]


async def draw(ask, ids):
    """512 next tokens for each of DRAWS, from requests that share batches."""
    common = {"prompt": ids, "max_tokens": 1, "temperature": 1.5, "n": 128, "logprobs": 0}
    requests = [
        ("/v1/completions", {**common, "seed": 500 * part, "return_tokens_as_token_ids": True, **fields})
        for part in range(4)
        for fields in DRAWS.values()
    ]
    drawn = {name: [] for name in DRAWS}
    for name, response in zip([*DRAWS] * 4, await ask.together(requests), strict=True):
        assert response.status_code == 200, response.text
        for choice in response.json()["choices"]:
            drawn[name].append(int(choice["logprobs"]["tokens"][0].removeprefix("token_id:")))
    return drawn


async def test_kept_sets_are_the_references(ask, logits):
    """Draws of every method, in one mixed batch, follow the reference distribution and its kept set."""
    ids, row = logits
    drawn = await draw(ask, ids)
    await asyncio.to_thread(check_draws, drawn, row / 1.5)


def check_draws(drawn, z):
    for name, fields in DRAWS.items():
        p = reference(z, fields)
        count = len(drawn[name])
        seen = torch.bincount(torch.tensor(drawn[name]), minlength=len(p)).double()
        assert int(seen[p == 0].sum()) == 0, f"{name}: drawn outside the reference's kept set"
        assert int((seen[p >= 0.03] == 0).sum()) == 0, f"{name}: a token of the kept set is never drawn"
        deviation = (seen / count - p).abs() / (p * (1 - p) / count).sqrt().clamp(min=1 / count)
        # below five expected draws a frequency is no normal variable
        assert float(deviation[p * count > 5].max()) < 5, name
