"""The compiling side of `server.constraints`: a process that imports vLLM once and forks for each constraint.

The process holds what all constraints need (vLLM, the tokenizer's vocabulary) and starts no thread, so that
a fork costs milliseconds. Each fork reaches the verdict that vLLM's engine would reach, then rehearses:
grammars compile in no time that later take seconds for each token, which the engine spends while every
other request waits.
"""

import copy
import gc
import json
import os
import pickle
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jsonschema import SchemaError
from jsonschema.validators import validator_for
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.transformers_utils.config import maybe_register_config_serialize_by_value
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import (
    XgrammarBackend,
    XgrammarGrammar,
    has_xgrammar_unsupported_json_features,
)
from vllm.v1.structured_output.request import get_structured_output_key

from policies.constraint import Constraint, subschemas

JOB_MEMORY = 4 * 2**30  # bytes of address space above what the process holds before a job
STARTED = b"\n"  # a job's first byte: its time counts from here

_PARSE_SECONDS = 0.5
REHEARSED_TOKENS = 128
_LATE_TOKENS = 32  # growth shows at the end of the rehearsal
_STEP_SECONDS = 1.0  # of one token
_MEAN_SECONDS = 0.05  # of one token, on average: about what a decoding step takes

# xgrammar compiles schemas with these and then ignores them.
_UNENFORCED = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems")


# In a grammar as xgrammar prints it.
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')
_TOKENS = re.compile(r"Token\(")

_BACKENDS: dict[str, type[StructuredOutputBackend]] = {
    "xgrammar": XgrammarBackend,
    "guidance": GuidanceBackend,
}


class Refused(ValueError):
    """The constraint cannot be served; the message says why, for the client who sent it."""


def packed(config: VllmConfig) -> bytes:
    """`config` for the compiling process, with model configuration classes that only this process has."""
    maybe_register_config_serialize_by_value()
    return pickle.dumps(config)


def structured_outputs(constraint: Constraint) -> StructuredOutputsParams:
    """What a request asks of vLLM's engine to be held to `constraint`."""
    value: Any = constraint.spec
    if constraint.kind == "json_object":
        value = True
    elif constraint.kind == "choice":
        value = json.loads(constraint.spec)
    return StructuredOutputsParams(**{constraint.kind: value})


@dataclass(frozen=True, slots=True)
class GrammarCompiler:
    """vLLM's structured-output backend, outside the engine. `vocab_size` counts the model's logits."""

    config: VllmConfig
    tokenizer: Any
    backend: StructuredOutputBackend

    @classmethod
    def of(cls, config: VllmConfig) -> "GrammarCompiler":
        """Raises ValueError for a backend that Steersman does not run."""
        tokenizer = cached_tokenizer_from_config(config.model_config)
        # The engine keeps the backend of its first constrained request for life, and compiles all later ones
        # with it. Under "auto" a schema that only guidance can enforce would be compiled by xgrammar, which
        # drops what it does not know. So none may come through, and "auto" means xgrammar.
        outputs = config.structured_outputs_config
        name = "xgrammar" if outputs.backend == "auto" else outputs.backend
        factory = _BACKENDS.get(name)
        if factory is None:
            raise ValueError(f"constraints need one of the backends {sorted(_BACKENDS)}, not {name}")
        config = copy.copy(config)  # `replace` would run all of its checks and defaults again
        config.structured_outputs_config = replace(outputs, backend=name)
        return cls(config, tokenizer, factory(config, tokenizer, config.model_config.get_vocab_size()))

    @property
    def vocab_size(self) -> int:
        return int(self.backend.vocab_size)

    def admit(self, params: StructuredOutputsParams) -> tuple[StructuredOutputOptions, str]:
        """What the engine will compile for `params`. Raises Refused."""
        sampling = SamplingParams(structured_outputs=params)
        try:
            sampling._validate_structured_outputs(  # noqa: SLF001  # the engine's own verdict, not a copy of it
                self.config.model_config, self.config.structured_outputs_config, self.tokenizer
            )
        except (VLLMValidationError, ValueError) as error:
            raise Refused(_beyond_xgrammar(params) or _reason(error)) from error
        return get_structured_output_key(params)

    def compiled(
        self, kind: StructuredOutputOptions, spec: str, stop_token_ids: set[int] | None = None
    ) -> StructuredOutputGrammar:
        """A matcher at its start, for what `admit` returned. Raises Refused.

        `stop_token_ids` end a text; by default they are the tokenizer's.
        """
        try:
            grammar = self.backend.compile_grammar(kind, spec, stop_token_ids)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise Refused(_reason(error)) from error
        printed = str(grammar.ctx.grammar) if isinstance(grammar, XgrammarGrammar) else ""
        if _TOKENS.search(_LITERAL.sub("", printed)):
            # Its cache holds sets of tokens for equal, whatever their ids: one grammar gets another's masks.
            raise Refused("A grammar of characters is served; sets of token ids are not.")
        return grammar

    def allowed(self, grammar: StructuredOutputGrammar) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Shape (vocab_size,): the tokens that may come next."""
        row = self.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(row, 0)
        bits = np.unpackbits(row[0].numpy().view(np.uint8), bitorder="little")
        return bits[: self.vocab_size].astype(np.bool_)


def check(compiler: GrammarCompiler, constraint: Constraint) -> None:
    """Raises Refused, with the compiler's reason."""
    if constraint.kind in ("json", "structural_tag"):
        _check_keywords(compiler, constraint)
    params = structured_outputs(constraint)
    before = time.thread_time()
    kind, spec = compiler.admit(params)
    # vLLM parses in the server's own loop, so that takes from everyone what it takes here.
    if (seconds := time.thread_time() - before) > _PARSE_SECONDS:
        raise Refused(f"Parsing it takes {seconds:.1f} s (at most {_PARSE_SECONDS}).")
    with _warnings() as warnings:
        grammar = compiler.compiled(kind, spec)
    if dropped := [line for line in warnings if "ignor" in line]:
        raise Refused(_words(dropped[0]))
    rehearse(compiler, grammar)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The lines that native code writes to stderr; filled at the end."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            lines += written.read().decode(errors="replace").splitlines()


def rehearse(compiler: GrammarCompiler, grammar: StructuredOutputGrammar) -> None:
    """Write random texts under `grammar` until REHEARSED_TOKENS; Refused if the engine would stall on it.

    Seconds are CPU seconds of this thread, as the engine fills masks in one thread of its own.
    """
    rng = np.random.default_rng(0)
    costs: list[float] = []
    ends = np.zeros(compiler.vocab_size, np.bool_)
    ends[list(compiler.tokenizer.all_special_ids)] = True
    while len(costs) < REHEARSED_TOKENS:
        before = time.thread_time()
        allowed = compiler.allowed(grammar)
        inner = np.flatnonzero(allowed & ~ends)
        if not allowed.any():
            raise Refused("No text can satisfy this constraint." if not costs else "It leads to a dead end.")
        if inner.size and not grammar.accept_tokens("rehearsal", [int(rng.choice(inner))]):
            raise Refused("Its grammar refuses a token that it allowed.")
        costs.append(time.thread_time() - before)
        _check_costs(costs)
        if not inner.size or grammar.is_terminated():
            grammar.reset()


def _check_costs(costs: list[float]) -> None:
    late = costs[-_LATE_TOKENS:]
    mean = sum(late) / _LATE_TOKENS
    if costs[-1] > _STEP_SECONDS or mean > _MEAN_SECONDS:
        raise Refused(
            f"Following it takes {1000 * max(mean, costs[-1] / len(late)):.0f} ms for each token "
            f"(at most {1000 * _MEAN_SECONDS:.0f}), after {len(costs)} tokens: it is too ambiguous, such as "
            "a repetition of repetitions, or has too many alternatives."
        )


def _check_keywords(compiler: GrammarCompiler, constraint: Constraint) -> None:
    schema = json.loads(constraint.spec)
    if constraint.kind == "json":
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise Refused(f"The JSON schema is not valid at {error.json_path}: {error.message}") from error
    if not isinstance(compiler.backend, XgrammarBackend):
        return  # guidance names what it cannot enforce itself
    for node in subschemas(schema):
        for keyword in _UNENFORCED:
            if keyword in node:
                raise Refused(f"The keyword `{keyword}` cannot be enforced during generation.")
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise Refused(f"`$ref` reaches only into its own schema, not to {reference!r}.")


def _beyond_xgrammar(params: StructuredOutputsParams) -> str | None:
    """The keywords for which vLLM's "features not supported by xgrammar" stands."""
    try:
        schema = json.loads(params.json) if isinstance(params.json, str) else params.json
    except ValueError:
        return None
    nodes = [node for node in subschemas(schema) if has_xgrammar_unsupported_json_features(node)]
    if not nodes:
        return None
    narrowest = min(nodes, key=lambda node: len(json.dumps(node)))
    keywords = ", ".join(f"`{keyword}`" for keyword in narrowest)
    return (
        f"This combination of keywords cannot be enforced during generation: {keywords}. (Not enforced: "
        "multipleOf; uniqueItems, contains; unknown formats; pattern or format with a length; allOf of "
        "several; patternProperties or propertyNames beside properties.)"
    )


def _reason(error: BaseException) -> str:
    """The compiler's own words, below vLLM's "Invalid grammar specification."."""
    while error.__cause__ is not None:
        error = error.__cause__
    first, _, rest = str(error).strip().partition("\n")
    return f"{_words(first)}\n{rest}".strip() or type(error).__name__


def _words(line: str) -> str:
    """`line` without the time and source line with which xgrammar leads."""
    return _ORIGIN.sub("", line)


_ORIGIN = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+\.(cc|h):\d+: (Warning: )?")


def _run_job(compiler: GrammarCompiler, connection: socket.socket) -> None:
    """In a fork: read a job from `connection`, answer it, and die by the clock where that takes too long."""
    with connection, connection.makefile("rwb") as stream:
        job = json.loads(stream.readline())
        stream.write(STARTED)
        stream.flush()
        # The default action of SIGALRM ends the process wherever it is, in native code too.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        held = int(_status("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (held + JOB_MEMORY, held + JOB_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(10)  # the server and the engine go first
        try:
            check(compiler, Constraint(job["kind"], job["spec"]))
            reason = None
        except Refused as refusal:
            reason = str(refusal)
        except MemoryError:
            reason = f"It needs more than {JOB_MEMORY >> 30} GiB to compile."
        except RecursionError:
            reason = "It nests too deeply."
        stream.write(json.dumps({"reason": reason}).encode())


def _status(field: str) -> str:
    with Path("/proc/self/status").open() as status:
        return next(line.split()[1] for line in status if line.startswith(f"{field}:"))


def serve(compiler: GrammarCompiler, requests: socket.socket) -> NoReturn:
    """Fork for every connection that comes through `requests`, and exit when the other end closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.freeze()  # forks share what is here; collections there would copy it
    while True:
        _, connections, _, _ = socket.recv_fds(requests, 1, 1)
        if not connections:
            os._exit(0)  # nothing to tidy, and an interpreter this full takes seconds to end
        if os.fork():
            os.close(connections[0])
            continue
        requests.close()
        with suppress(BrokenPipeError):
            _run_job(compiler, socket.socket(fileno=connections[0]))
        os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    config = pickle.load(sys.stdin.buffer)  # noqa: S301  # our own parent wrote it
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        serve(GrammarCompiler.of(config), requests)


if __name__ == "__main__":
    main()
