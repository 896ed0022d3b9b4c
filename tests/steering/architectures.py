"""Which architectures steering covers, by hand: `python -m tests.steering.architectures [NAME …]`.

A tiny model of each is steered at its first, middle and last block, over a prompt of three chunks and what is
generated, and compared with Transformers.
"""

import sys
import tempfile
from pathlib import Path

from steering.spec import STEERING_KEY, Operation, SteeringSpec, Term
from tests.steering.models import ARCHITECTURES, LAYERS, VOCAB, save
from tests.steering.reference import logprobs, vector_for
from tests.steering.vllm_engine import EngineError, EngineProcess

PROMPT = [(7 * k * k + 3 * k + 5) % VOCAB for k in range(150)]


def measure(engine, name, folder, **options):
    """Largest difference to Transformers, unsteered and steered, and steering's effect; or why it is none."""
    model = save(name, folder)
    engine.start(folder, **options)
    facts = engine.rpc("steersman_facts")[0]
    if facts["problem"]:
        return facts["problem"]
    vector = vector_for(model, PROMPT, (0, LAYERS // 2, LAYERS - 1))
    assert engine.rpc("steersman_load", vector.digest, vector.blob) == [None]
    # one that reads the state and one that does not
    terms = [Term(vector.digest, tuple(vector.layers), op, 0.7) for op in (Operation.ADD, Operation.NORM_ADD)]
    specs = [None, *(SteeringSpec((term,), "trace") for term in terms)]
    requests = [
        {
            "prompt": PROMPT,
            "params": {"prompt_logprobs": 0},
            "extra_args": spec and {STEERING_KEY: spec.encode()},
            "cache_salt": spec and spec.cache_salt(None),
        }
        for spec in specs
    ]
    differences = []
    for spec, result in zip(specs, engine.generate(requests), strict=True):
        output = result["outputs"][0]
        ids = PROMPT + output["token_ids"]
        found = result["prompt_logprobs"] + output["logprobs"]
        expected = logprobs(model, ids, spec, {vector.digest: vector}, len(PROMPT))
        plain = logprobs(model, ids)
        differences.append(
            (
                max(abs(a - b) for a, b in zip(found, expected, strict=True)),
                max(abs(a - b) for a, b in zip(plain, expected, strict=True)),
            )
        )
    (base, _), *others = differences
    return base, max(difference for difference, _ in others), min(effect for _, effect in others)


def main(names, **options):
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineProcess(Path(folder))
        try:
            print(f"{'architecture':14}{'unsteered':>12}{'steered':>12}{'effect':>10}")
            for name in names:
                try:
                    found = measure(engine, name, Path(folder) / name, **options)
                except EngineError as error:
                    found = str(error)
                if isinstance(found, str):
                    print(f"{name:14}  {found[:300]}", flush=True)
                else:
                    print(f"{name:14}{found[0]:12.1e}{found[1]:12.1e}{found[2]:10.2f}", flush=True)
        finally:
            engine.close()


if __name__ == "__main__":
    main(sys.argv[1:] or list(ARCHITECTURES))
