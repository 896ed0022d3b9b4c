"""The sampling methods inside vLLM's V1 runner; loaded as `processors.vllm_logits:SteersmanLogits`.

vLLM runs it after temperature and its own min-p, before its top-k and top-p. Inside: typical, then min-p
among what is left, then ADS. Greedy rows are left alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from processors.ads import ads
from processors.args import ArgumentError, ProcessorArgs
from processors.embedding_table import load_table
from processors.min_p import min_p_removed
from processors.ring import Seat, SiblingRing, window
from processors.slots import Slots
from processors.tables import AdsTable, TypicalTable, ads_table, typical_table
from processors.typical import typical_removed
from processors.upload import Upload

# Key of `--additional-config`: a table file made by `embedding_table`. Without it ADS counts repeated tokens.
TABLE_KEY = "ads_embedding_table"
_GREEDY = 1e-5  # vLLM draws nothing below this temperature


@dataclass(slots=True)
class _Request:
    """`output` is the engine's live list; tokens before `written` are in the ring."""

    args: ProcessorArgs
    output: list[int]
    seat: Seat | None = field(init=False)
    written: int = 0

    def __post_init__(self) -> None:
        ads = self.args.ads
        shared = ads is not None and ads.siblings > 1
        # The window follows from the number of siblings: requests that disagree on it share no group.
        self.seat = Seat((ads.group, ads.siblings), ads.slot, ads.siblings) if ads and shared else None


def admit(params: SamplingParams) -> ProcessorArgs:
    """What `params` ask of the processors. Raises `VLLMValidationError`, which names the field."""
    try:
        return ProcessorArgs.from_extra_args(params.extra_args or {})
    except ArgumentError as error:
        raise VLLMValidationError(str(error), parameter=error.field, value=error.value) from error


class SteersmanLogits(LogitsProcessor):
    """Typical, min-p after typical, and ADS for the rows that ask for them; other rows stay as they are."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise `VLLMValidationError`, which names the field, for arguments that cannot be honoured."""
        args = admit(sampling_params)
        if args.ads:
            _refuse_native(sampling_params, "ads_", {"n": 1, "top_k": 0, "top_p": 1.0, "min_p": 0.0})
        elif args.typical:
            _refuse_native(sampling_params, "typical_", {"min_p": 0.0})

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._upload = Upload(torch.device(device), pinned=is_pin_memory)
        self._requests: Slots[_Request] = Slots()
        self._ring = SiblingRing(vllm_config.scheduler_config.max_num_seqs, self._upload)
        self._sharing: list[_Request] = []
        self._typical: TypicalTable | None = None
        self._ads: AdsTable | None = None
        self._table = _configured_table(vllm_config, self._upload.device)

    def is_argmax_invariant(self) -> bool:
        """True, though typical may drop the argmax: this places the processor after temperature."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        if self._requests.update(
            batch_update.removed,
            [(row, _request(params, output)) for row, params, _, output in batch_update.added],
            [(a, b, direction is MoveDirectionality.SWAP) for a, b, direction in batch_update.moved],
        ):
            self._rebuild()

    def apply(self, logits: Tensor) -> Tensor:
        if self._typical:
            _apply_typical(logits, self._typical)
        if self._ads:
            self._record()
            rows, covered = self._ads.rows, self._ring.gather(self._ads.siblings)
            z = _select(logits, rows, len(covered))
            _restore(logits, rows, ads(z, self._ads.args, covered, self._table))
        return logits

    def _rebuild(self) -> None:
        requests = self._requests.rows()
        typical = [(row, request.args.typical) for row, request in requests if request.args.typical]
        asked = [(row, request, request.args.ads) for row, request in requests if request.args.ads]
        self._sharing = [request for _, request, _ in asked if request.seat]
        self._ring.seat(request.seat.group for request in self._sharing if request.seat)
        self._typical = typical_table(typical, self._upload)
        self._ads = ads_table(
            [(row, args) for row, _, args in asked],
            self._ring.reach([request.seat for _, request, _ in asked]),
            self._upload,
            kernel=self._table is not None,
        )

    def _record(self) -> None:
        """Write the siblings' new tokens into the ring.

        Here and not in `update_state`: only now has asynchronous scheduling replaced the placeholders, -1, of
        the last step. One still there is left for the next step. The token a request ends with is never
        written, as the request is gone by then; its end must not keep the siblings from ending.
        """
        cells: list[int] = []
        tokens: list[int] = []
        for request in self._sharing:
            seat, output = request.seat, request.output
            assert seat is not None
            for position in range(max(request.written, len(output) - window(seat.siblings)), len(output)):
                if output[position] < 0:
                    break
                cells.append(self._ring.cell(seat, position))
                tokens.append(output[position])
                request.written = position + 1
        if cells:
            self._ring.write(cells, tokens)


def _request(params: SamplingParams, output: list[int]) -> _Request | None:
    args = ProcessorArgs.from_extra_args(params.extra_args or {})
    sampled = params.temperature >= _GREEDY
    return _Request(args, output) if sampled and (args.typical or args.ads) else None


def _refuse_native(params: SamplingParams, prefix: str, neutral: dict[str, float]) -> None:
    """The engine's own truncation would cut the reweighed distribution, and its own `n` shares one slot."""
    for name, value in neutral.items():
        if getattr(params, name) != value and not (name == "top_k" and params.top_k < 0):
            raise VLLMValidationError(
                f"{name} must be {value} with this method: it is sent as {prefix}{name}",
                parameter=name,
                value=getattr(params, name),
            )


def _apply_typical(logits: Tensor, table: TypicalTable) -> None:
    z = _select(logits, table.rows, len(table.mass))
    if table.truncates:
        z.masked_fill_(typical_removed(z, table.mass), float("-inf"))
    if table.floor:
        z.masked_fill_(min_p_removed(z, table.log_min_p), float("-inf"))
    _restore(logits, table.rows, z)


def _select(logits: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """A copy of `rows`, or a view of the first `count` rows."""
    return logits[:count] if rows is None else logits.index_select(0, rows)


def _restore(logits: Tensor, rows: Tensor | None, z: Tensor) -> None:
    if rows is not None:
        logits.index_copy_(0, rows, z)


def _configured_table(config: VllmConfig, device: torch.device) -> Tensor | None:
    additional = config.additional_config
    path = additional.get(TABLE_KEY) if isinstance(additional, dict) else None
    if path is None:
        return None
    return load_table(Path(path), columns=config.model_config.get_vocab_size()).to(device)
