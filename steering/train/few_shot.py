"""Optimised vectors in a process of their own, which loads the model, learns and ends.

`python -m steering.train.few_shot` reads a Request as JSON, writes a line of JSON per step to its standard
output and the vector to the file that the request names. `run` is the other side of that.
"""

import asyncio
import contextlib
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steering.train.optimised import Found, Objective, Options, Step, optimise
from steering.train.pairs import Pair, encoded
from steering.train.result import Evidence, Trained
from steering.train.tail import Tail
from steering.vector import SteeringVector

_LINE = 2**20  # bytes of one progress line at most
_STDERR = 4000  # characters of it that an error quotes
_NICENESS = 10  # requests being served come first
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # glibc would return every large tensor to the system and fault its pages in anew for the next one.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


class FewShotError(RuntimeError):
    """The process failed for a reason other than what was asked of it; the message quotes its stderr."""


@dataclass(frozen=True, slots=True)
class Request:
    """`model` is a folder in Hugging Face's format; `max_norms` bounds ‖v‖ at each of `layers`.

    Prompts that a chat template made already begin with the start token: then `add_special_tokens` is False.
    """

    model: str
    pairs: tuple[Pair, ...]
    layers: tuple[int, ...]
    max_norms: Mapping[int, float]
    options: Options = field(default_factory=Options)
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if not self.pairs or not self.layers:
            raise ValueError("at least one pair and one layer are needed")
        for layer in self.layers:
            if not self.max_norms.get(layer, 0.0) > 0:
                raise ValueError(f"max_norms needs a positive bound for layer {layer}")

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Request":
        fields = data | {
            "pairs": tuple(Pair(**pair) for pair in data["pairs"]),
            "layers": tuple(data["layers"]),
            "max_norms": {int(layer): norm for layer, norm in data["max_norms"].items()},
            "options": Options(**data["options"]),
        }
        return cls(**fields)


async def run(request: Request, on_progress: Callable[[Step], None]) -> Trained:
    """Raises ValueError for what the caller can put right, else FewShotError. Cancelling ends the process."""
    with tempfile.TemporaryDirectory(prefix="steersman-few-shot-") as folder:
        output = Path(folder, "vector.safetensors")
        job = json.dumps(asdict(request) | {"output": str(output)})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "steering.train.few_shot"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            env=os.environ | _ENVIRONMENT,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_send(process, job.encode()))
                errors = group.create_task(_stderr(process))
                result = group.create_task(_follow(process, on_progress))
            code = await process.wait()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        evidence = result.result()
        if code != 0 or evidence is None:
            raise FewShotError(f"few-shot training ended with status {code}: {errors.result()[-_STDERR:]}")
        vector = await asyncio.to_thread(lambda: SteeringVector.from_blob(output.read_bytes()))
    return Trained(vector, evidence)


async def _send(process: asyncio.subprocess.Process, job: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # it ended early: its status and stderr say why
        process.stdin.write(job)
        await process.stdin.drain()
    process.stdin.close()


async def _stderr(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    text = b""
    while chunk := await process.stderr.read(65536):
        text = (text + chunk)[-4 * _STDERR :]
    return text.decode(errors="replace").strip()


async def _follow(
    process: asyncio.subprocess.Process, on_progress: Callable[[Step], None]
) -> dict[int, Evidence] | None:
    """Every step to `on_progress`; the evidence from the last line, None where there is none."""
    assert process.stdout is not None
    evidence = None
    async for line in process.stdout:
        event = json.loads(line)
        if "step" in event:
            on_progress(Step(**event["step"] | {"layers": tuple(event["step"]["layers"])}))
        elif "refused" in event:
            raise ValueError(event["refused"])
        else:
            evidence = {int(layer): Evidence(**known) for layer, known in event["evidence"].items()}
    return evidence


def train(request: Request, on_step: Callable[[Step], None]) -> Trained:
    """The work itself, in this process. Loads the model from disk."""
    # Probabilities far down are denormal numbers, on which a CPU's matrix products take 100 times as long.
    torch.set_flush_denormal(True)
    if torch.cuda.is_available():
        # The engine may have left too little memory for a second copy of the model.
        with contextlib.suppress(torch.OutOfMemoryError):
            return _train(request, "cuda", on_step)
    return _train(request, "cpu", on_step)


def _train(request: Request, device: str, on_step: Callable[[Step], None]) -> Trained:
    # Heavy, and not needed where `run` is called.
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(request.model, local_files_only=True)
    pairs = encoded(
        lambda text: list(tokenizer.encode(text, add_special_tokens=request.add_special_tokens)),
        request.pairs,
    )
    model = AutoModelForCausalLM.from_pretrained(
        request.model, dtype=torch.float32 if device == "cpu" else "auto", local_files_only=True
    )
    tail = Tail(model.to(device))
    if wrong := [layer for layer in request.layers if not 0 <= layer < len(tail.blocks)]:
        raise ValueError(f"the model has layers 0 to {len(tail.blocks) - 1}, not {wrong[0]}")
    draft = None
    if device == "cpu" and torch.cpu.get_capabilities().get("amx_bf16"):
        # Such CPUs multiply bfloat16 several times faster; the losses of the result are float32 regardless.
        draft = Tail(copy.deepcopy(tail.model).to(torch.bfloat16))
    objective = Objective(tail, pairs, request.options, device, draft)
    tail.check(objective.batches[0], request.layers[0])
    found = optimise(objective, request.layers, request.max_norms, on_step)
    vector = SteeringVector.of({layer: run.direction for layer, run in found.items()})
    return Trained(vector, {layer: _evidence(run, len(pairs)) for layer, run in found.items()})


def _evidence(run: Found, pairs: int) -> Evidence:
    norm = float(np.linalg.norm(run.direction))
    return Evidence(
        norm=norm,
        relative_dose=norm / run.mean_norm,
        pairs=pairs,
        loss_before=run.before,
        loss=run.loss,
        iterations=run.iterations,
    )


def main() -> int:
    # Libraries print to standard output; only events belong there.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(_NICENESS)
    job = json.load(sys.stdin)
    output = Path(job.pop("output"))

    def write(event: dict[str, object]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        trained = train(Request.decode(job), lambda step: write({"step": asdict(step)}))
    except ValueError as error:
        write({"refused": str(error)})
        raise
    output.write_bytes(trained.vector.blob)
    write({"evidence": {layer: evidence.known() for layer, evidence in trained.evidence.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
