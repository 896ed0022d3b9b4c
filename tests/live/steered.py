"""What the tests of steering send: vectors, contrastive pairs, and log-probabilities to compare."""

import json
from pathlib import Path

import numpy as np

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
WIDTH = 576  # of the embedded model
PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "steering/presets/tone_control.jsonl").read_text().splitlines()
]


def noise(seed, layers=(12,), scale=1.0):
    """An inline vector that moves log-probabilities well beyond rounding and stays below the safe dose."""
    draw = np.random.default_rng(seed)
    return {str(layer): (draw.standard_normal(WIDTH) * scale).round(4).tolist() for layer in layers}


def upload(client, vector, **fields):
    response = client.post("/steering/vectors", json={"vector": vector, **fields})
    assert response.status_code == 200, response.text
    return response.json()["id"]


def pairs_body(count=8, start=0, **fields):
    chosen = PAIRS[start : start + count]
    return {
        "prompts": [pair["prompt"] for pair in chosen],
        "positive_answers": [pair["positive_answer"] for pair in chosen],
        "negative_answers": [pair["negative_answer"] for pair in chosen],
        **fields,
    }


def logprobs(answer):
    return answer["choices"][0]["logprobs"]["token_logprobs"]


def scored(ask, prompt="The weather in the mountains", **fields):
    """Log-probabilities of prompt and continuation, and what was applied."""
    answer = ask.ok(
        COMPLETIONS,
        prompt=prompt,
        **{"max_tokens": 8, "temperature": 0, "logprobs": 0, "echo": True, "ignore_eos": True, **fields},
    )
    return logprobs(answer)[1:], answer["steersman"].get("steering")


def differ(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
