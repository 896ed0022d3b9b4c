"""Forbidden terms inside vLLM's V1 runner; loaded as `processors.vllm_forbidden:SteersmanForbidden`.

A processor of its own beside `processors.vllm_logits`: vLLM runs this one before penalties and temperature,
and for greedy rows too. Tokens that would complete a term get -inf, as those do that a grammar refuses.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import ModelConfig, VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from processors.args import ProcessorArgs
from processors.ban import ban
from processors.forbidden import ROOT, Automaton, prepare
from processors.slots import Slots
from processors.upload import Upload
from processors.vllm_logits import admit
from processors.vocabulary import Vocabulary, token_texts

_AUTOMATA = 64  # remembered beyond the requests that run
_BAN_BYTES = 64 * 2**20


@dataclass(slots=True)
class _Request:
    """`output` is the engine's live list; the automaton has read its tokens before `read`.

    `masked`: something else may take any number of tokens out of its row.
    """

    automaton: Automaton
    output: list[int]
    masked: bool
    state: int = ROOT
    read: int = 0

    def follow(self) -> int:
        """The state after all tokens; asynchronous scheduling's placeholders, -1, wait for the next step."""
        if self.read > len(self.output):  # the engine took tokens back
            self.state, self.read = ROOT, 0
        while self.read < len(self.output) and self.output[self.read] >= 0:
            self.state = self.automaton.advance(self.state, self.output[self.read])
            self.read += 1
        return self.state


class SteersmanForbidden(LogitsProcessor):
    """Bans, for the rows that ask for it, the tokens that would complete a forbidden term.

    Where they are all that a grammar leaves the ban yields (`ban`), and the text may come to hold the term.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise `VLLMValidationError`, which names the field, for terms that cannot be honoured."""
        admit(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._upload = Upload(torch.device(device), pinned=is_pin_memory)
        self._requests: Slots[_Request] = Slots()
        self._asked: list[tuple[int, _Request]] = []
        self._bans = _Bans(self._upload, _BAN_BYTES)
        # At the start, for the first request that forbids something not to hold up all others.
        vocabulary = _vocabulary(vllm_config)
        prepare()
        self._automaton = lru_cache(_AUTOMATA)(lambda terms: Automaton(terms, vocabulary))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        if self._requests.update(
            batch_update.removed,
            [(row, self._request(params, output)) for row, params, _, output in batch_update.added],
            [(a, b, direction is MoveDirectionality.SWAP) for a, b, direction in batch_update.moved],
        ):
            self._asked = self._requests.rows()

    def apply(self, logits: Tensor) -> Tensor:
        if not self._asked:
            return logits
        # Here and not in `update_state`: only now has asynchronous scheduling replaced its placeholders.
        bans = [
            (row, self._bans(request.automaton, request.follow()), request.masked)
            for row, request in self._asked
        ]
        # An unmasked row can only be emptied by a ban of nearly everything; most are spared the look at it.
        half = logits.shape[-1] // 2
        for yields in (False, True):
            chosen = [
                (row, tokens)
                for row, tokens, masked in bans
                if len(tokens) and (masked or len(tokens) > half) is yields
            ]
            rows, tokens = [row for row, _ in chosen], [ids for _, ids in chosen]
            ban(logits, rows, tokens, self._upload, yields=yields)
        return logits

    def _request(self, params: SamplingParams, output: list[int]) -> _Request | None:
        terms = ProcessorArgs.from_extra_args(params.extra_args or {}).forbidden_terms
        if not terms:
            return None
        masks = (params.structured_outputs, params.allowed_token_ids, params.bad_words)
        return _Request(self._automaton(terms), output, masked=any(masks))


class _Bans:
    """Ids of the banned tokens on the device, by automaton and state; the longest unused go beyond a size."""

    def __init__(self, upload: Upload, limit: int) -> None:
        self._upload, self._limit, self._held = upload, limit, 0
        self._bans: OrderedDict[tuple[Automaton, int], Tensor] = OrderedDict()

    def __call__(self, automaton: Automaton, state: int) -> Tensor:
        key = automaton, state
        tokens = self._bans.get(key)
        if tokens is not None:
            self._bans.move_to_end(key)
            return tokens
        tokens = self._bans[key] = self._upload(automaton.banned(state), torch.int64)
        self._held += _bytes(tokens)
        while self._held > self._limit and len(self._bans) > 1:
            self._held -= _bytes(self._bans.popitem(last=False)[1])
        return tokens


def _bytes(tokens: Tensor) -> int:
    return tokens.nbytes + 512  # and what holds them


def _vocabulary(config: VllmConfig) -> Vocabulary:
    model = config.model_config
    size, tokenizer = model.get_vocab_size(), cached_tokenizer_from_config(model)
    # Without a tokenizer, there is no text to keep a term out of.
    texts = token_texts(tokenizer, size) if tokenizer else [b""] * size
    for token in _ends(model):
        texts[token] = b""
    return Vocabulary(texts)


def _ends(model: ModelConfig) -> list[int]:
    """Tokens that end a text beside the tokenizer's own, which need not be special to it."""
    ends = model.try_get_generation_config().get("eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or ())
