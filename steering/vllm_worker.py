"""vLLM's worker with steering in its model runner: `--worker-cls steering.vllm_worker.SteeringWorker`.

After the weights are loaded every decoder block is wrapped; before each forward pass the runner's own
preparation also fills the layout. Nothing of vLLM is edited or forked.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import islice
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CompilationMode, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from steering.apply import TorchPass
from steering.kernel import GraphPass, lines_of
from steering.layers import Apply, UnsteerableError, decoder_blocks, leaves_reduction, wrap
from steering.layout import Batch
from steering.spec import (
    CAPTURE_KEY,
    CONFIG_KEY,
    DEFAULT_ROWS,
    STEERING_KEY,
    CaptureSpec,
    SpecError,
    SteeringSpec,
)
from steering.table import TableFull, VectorTable
from steering.vector import VectorError
from steering.watch import Watching

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as VllmWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as VllmWorker

logger = init_logger("vllm.steersman")

_NORM = re.compile(r"(norm|\bln_)[^.]*\.weight$")  # GPT-2 and its kin call them ln_1
_EMBEDDING = re.compile(r"(embed|wte)[^.]*\.weight$")
_ROWS_HASHED = 64
_LIBRARY = torch.library.Library("steersman", "FRAGMENT")
_pass: Apply | None = None  # of this process, whose one engine has one model


def _steer(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    assert _pass is not None
    _pass(hidden, residual, layer)


def _steer_fake(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    pass


# Opaque to Dynamo, so that compiled graphs hold one node per layer whatever the requests ask for.
direct_register_custom_op("steer", _steer, ["hidden"], _steer_fake, target_lib=_LIBRARY)


class SteeringWorker(VllmWorker):
    _steering: "_Steering | None" = None
    _unsteerable = "the model is not loaded yet"

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        try:
            self._steering = _Steering(self.model_runner, self.vllm_config, self.device)
        except UnsteerableError as error:
            self._unsteerable = str(error)
            logger.warning("This model cannot be steered: %s", error)

    # What follows is called by name through `collective_rpc`, with values that msgpack carries.

    def steersman_facts(self) -> dict[str, Any]:
        """The model as steering sees it; `problem` where it cannot be steered."""
        if self._steering is None:
            return {"problem": self._unsteerable}
        return self._steering.facts()

    def steersman_load(self, digest: str, blob: bytes, owner: str = "") -> str | None:
        """None, or why the vector was not loaded. Every rank must come to the same."""
        if self._steering is None:
            return self._unsteerable
        if self._steering.problem:
            return self._steering.problem
        try:
            self._steering.table.sweep(self._steering.batch.vectors)
            self._steering.table.load(digest, blob, self._steering.count, owner)
        except (VectorError, TableFull) as error:
            return str(error)
        return None

    def steersman_unload(self, digests: list[str], owner: str = "") -> None:
        if self._steering is not None:
            for digest in digests:
                self._steering.table.unload(digest, owner, self._steering.batch.vectors)

    def steersman_evidence(self, traces: list[str]) -> dict[str, list[Any]]:
        """Prompt tokens, generated tokens, problem and what `steersman_watched` gives by trace."""
        if self._steering is None:
            return {trace: [0, 0, self._unsteerable, []] for trace in traces}
        self._steering.passing.settle()
        found = self._steering.batch.evidence(traces)
        return {
            trace: [e.prompt_tokens, e.generated_tokens, e.problem, _watched(e.watchings)]
            for trace, e in found.items()
        }

    def steersman_watched(self, traces: list[str]) -> dict[str, list[Any]]:
        """By trace, for each watch: float32 bytes of the scores until now, and how many of the generated
        tokens had one when its terms began to act, or None."""
        if self._steering is None:
            return {}
        self._steering.passing.settle()
        found = self._steering.batch.watched(traces)
        return {trace: _watched(watchings) for trace, watchings in found.items()}

    def steersman_captured(self, identity: str) -> list[Any] | None:
        """Shape, means and mean norms as float32 bytes; a number alone counts the states that are missing."""
        if self._steering is None:
            return None
        self._steering.passing.collect()
        capture = self._steering.batch.captured(identity)
        if capture is None:
            return None
        if capture.missing:
            return [capture.missing]
        means = capture.means()
        return [list(means.shape), means.tobytes(), capture.norms().tobytes()]

    def steersman_usage(self) -> dict[str, int]:
        """Lines free, and how many vectors, requests and results are held."""
        assert self._steering is not None
        batch, table = self._steering.batch, self._steering.table
        table.sweep(batch.vectors)
        return {"free_lines": table.free_lines, "vectors": len(table), **batch.held()}


def _watched(watchings: Sequence[Watching]) -> list[Any]:
    return [
        [
            np.array(each.scores, np.float32).tobytes(),
            None if each.since is None else each.since - each.prompt_tokens,
        ]
        for each in watchings
    ]


class _Steering:
    """What one worker needs: table, batch, and the hooks in its runner."""

    def __init__(self, runner: Any, config: VllmConfig, device: torch.device) -> None:
        global _pass  # noqa: PLW0603  # the custom op is a function of the process
        _refuse_modes(config)
        model = config.model_config
        self.count, self.width = int(model.get_total_num_hidden_layers()), int(model.get_hidden_size())
        blocks = decoder_blocks(runner.get_model(), self.count)
        if config.parallel_config.tensor_parallel_size > 1 and any(map(leaves_reduction, blocks)):
            raise UnsteerableError("no rank has the states of this model's blocks, which are summed later")
        rows = config.additional_config.get(CONFIG_KEY, {}).get("rows", DEFAULT_ROWS)
        self.table = VectorTable(rows, self.width, device)
        self._fingerprint = _fingerprint(runner.get_model(), blocks, self.width)
        self._unread: dict[int, str] = {}
        self._drafts = config.speculative_config is not None
        self.passing = self._make_pass(config, device)
        self.batch = Batch(self.table, latching=isinstance(self.passing, GraphPass))
        _pass = self.passing
        eager = config.compilation_config.mode == CompilationMode.NONE
        apply = self.passing if eager else torch.ops.steersman.steer
        skips = self.passing.skips if eager and isinstance(self.passing, TorchPass) else None
        for layer, block in enumerate(blocks):
            wrap(block, layer, self.width, apply, self._unread, skips=skips)
        self._hook(runner)

    def _make_pass(self, config: VllmConfig, device: torch.device) -> TorchPass | GraphPass:
        if device.type != "cuda":
            return TorchPass(self.table.bank, config.model_config.dtype)
        scheduler = config.scheduler_config
        return GraphPass(
            self.table.bank,
            layers=self.count,
            max_tokens=scheduler.max_num_batched_tokens,
            max_requests=scheduler.max_num_seqs,
        )

    @property
    def problem(self) -> str | None:
        """Known once a forward pass was made: vLLM's own at start, but eager on a CPU the first request's."""
        for layer, returned in self._unread.items():
            return f"decoder block {layer} returns {returned}, not hidden states {self.width} wide"
        return None

    def facts(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "layers": self.count,
            "width": self.width,
            "fingerprint": self._fingerprint,
            "rows": self.table.lines,
        }

    def _hook(self, runner: Any) -> None:
        update, prepare, dummy = runner._update_states, runner._prepare_inputs, runner._dummy_run  # noqa: SLF001

        def update_states(_: Any, scheduled: Any) -> Any:
            if self.batch.watches(scheduled.scheduled_cached_reqs.resumed_req_ids):
                self.passing.settle()  # what was scored before is not scored again
            for request in scheduled.finished_req_ids:
                self.batch.retire(request)
            for new in scheduled.scheduled_new_reqs:
                self._admit(new)
            return update(scheduled)

        def prepare_inputs(runner: Any, scheduled: Any, counts: Any) -> Any:
            rows = runner.input_batch
            computed = rows.num_computed_tokens_cpu[: rows.num_reqs]
            self.passing.begin()
            if self.batch.prepare(rows.req_ids, counts, computed):
                self.passing.take(self.batch.layout)
            return prepare(scheduled, counts)

        def dummy_run(_: Any, *args: Any, **kwargs: Any) -> Any:
            self.passing.begin()
            if self.batch.clear():
                self.passing.take(self.batch.layout)
            return dummy(*args, **kwargs)

        runner._update_states = MethodType(update_states, runner)  # noqa: SLF001
        runner._prepare_inputs = MethodType(prepare_inputs, runner)  # noqa: SLF001
        runner._dummy_run = MethodType(dummy_run, runner)  # noqa: SLF001

    def _admit(self, new: Any) -> None:
        extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
        if self.problem and not extra.keys().isdisjoint((STEERING_KEY, CAPTURE_KEY)):
            logger.error("Request %s runs unsteered: %s", new.req_id, self.problem)
            return
        try:
            if STEERING_KEY in extra:
                spec = SteeringSpec.decode(extra[STEERING_KEY])
                if spec.watches and self._drafts:
                    raise SpecError(STEERING_KEY, "drafts that are rejected would be scored")
                self.batch.admit(new.req_id, spec, spec.prompt_tokens or _length(new))
            if CAPTURE_KEY in extra:
                self._capture(new.req_id, CaptureSpec.decode(extra[CAPTURE_KEY]))
        except (ValueError, KeyError, TypeError) as error:
            # The server's specs are sound; a client of plain vLLM finds this line and no evidence.
            logger.error("Request %s runs unsteered: %s", new.req_id, error)  # noqa: TRY400

    def _capture(self, request: str, spec: CaptureSpec) -> None:
        """Every rank decides alike; where there is no room the request runs, and its states are missing."""
        if lines_of(spec) > self.passing.free_capture_lines(self.batch.capturing):
            raise SpecError(CAPTURE_KEY, "too many states are captured at once")
        self.batch.capture(request, spec)


def _length(new: Any) -> int:
    if new.prompt_token_ids is not None:
        return len(new.prompt_token_ids)
    return len(new.prompt_embeds)


def _refuse_modes(config: VllmConfig) -> None:
    """Raises UnsteerableError for ways of running that were never tried."""
    parallel, drafts = config.parallel_config, config.speculative_config is not None
    refused = {
        "vLLM's second model runner": config.use_v2_model_runner,
        "micro-batching (DBO)": parallel.use_ubatching,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "sequence-parallel MoE": parallel.use_sequence_parallel_moe,
        # There the host counts every draft as accepted: positions are off by those that were not.
        "asynchronous scheduling of drafts": drafts and config.scheduler_config.async_scheduling,
    }
    for mode, on in refused.items():
        if on:
            raise UnsteerableError(f"{mode} is on, which steering does not cover")


def _fingerprint(model: torch.nn.Module, blocks: Sequence[torch.nn.Module], width: int) -> str:
    """Of the model, whatever its name: shape, and the norm weights of all blocks.

    Those are whole on every tensor-parallel rank and left alone by quantisation; bfloat16 makes them the
    same in all types that a model is served in. OLMo's norms have none: the embeddings of its first tokens
    stand in, which are those of the first rank.
    """
    named = [sorted(block.named_parameters()) for block in blocks]
    hashed: list[Tensor] = [
        weight for part in named for name, weight in part if weight.dim() == 1 and _NORM.search(name)
    ]
    if not hashed:
        tables = (p for name, p in model.named_parameters() if p.dim() == 2 and _EMBEDDING.search(name))
        hashed = [table[:_ROWS_HASHED] for table in islice(tables, 1)]
    digest = hashlib.sha256(f"{len(blocks)}x{width}".encode())
    for weight in hashed:
        raw = weight.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
