import math
import random
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder, LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from processors import vllm_forbidden
from processors.args import ProcessorArgs
from processors.forbidden import ROOT
from processors.upload import Upload
from processors.vllm_forbidden import SteersmanForbidden

ONE_WAY, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP
NEG = -math.inf
CPU = torch.device("cpu")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["<|end|>", *ALPHABET, "ki", "ll", "kill", "Ġkill", "il", "abc", "<stop>"]
END, STOP = PIECES.index("<|end|>"), PIECES.index("<stop>")
V = len(PIECES) + 5
# GPT-2's alphabet: the letter of each byte.
OTHERS = iter(range(256, 512))
PLAIN = {*range(33, 127), *range(161, 173), *range(174, 256)}
LETTERS = [chr(byte) if byte in PLAIN else chr(next(OTHERS)) for byte in range(256)]
BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    model = models.BPE({piece: token for token, piece in enumerate(PIECES)}, [])
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    monkeypatch.setattr(vllm_forbidden, "cached_tokenizer_from_config", lambda config: fast)
    return fast


def processor(device=CPU):
    generation = {"eos_token_id": [END, STOP]}
    model = SimpleNamespace(get_vocab_size=lambda: V, try_get_generation_config=lambda: generation)
    return SteersmanForbidden(SimpleNamespace(model_config=model), device, False)


def params(*terms, **kwargs):
    return SamplingParams(extra_args=ProcessorArgs(forbidden_terms=terms).to_extra_args(), **kwargs)


def update(size, removed=(), added=(), moved=()):
    return BatchUpdate(size, removed, [(row, p, None, output) for row, p, output in added], moved)


def logits(count, seed=0):
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 3


def tokens(text):
    """`text` in single bytes."""
    return [PIECES.index(LETTERS[byte]) for byte in text.encode()]


def banned(result):
    """The pieces that a row's result refuses."""
    return {PIECES[token] for token in (result == NEG).nonzero().flatten().tolist()}


def text_of(output):
    pieces = [PIECES[token] for token in output if token not in (END, STOP)]
    return bytes(BYTES[letter] for piece in pieces for letter in piece).decode(errors="replace")


def completing(output, terms):
    """By definition, for lower-case terms of plain letters: the pieces that would write one after `output`.

    The text so far has none.
    """
    before = text_of(output).lower()
    texts = {PIECES[token]: before + text_of([token]).lower() for token in range(len(PIECES))}
    return {piece for piece, text in texts.items() if any(term in text for term in terms)}


def test_is_a_processor_that_greedy_rows_meet_too():
    """vLLM accepts the class, and runs what is not argmax-invariant for every batch, before temperature."""
    assert issubclass(SteersmanForbidden, LogitsProcessor)
    assert processor().is_argmax_invariant() is False


def test_loads_by_qualified_name():
    """Both names given to --logits-processors are importable the way vLLM imports them."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    from server.vllm_launch import LOGITS_PROCESSORS

    names = [cls.__name__ for cls in _load_logitsprocs_by_fqcns(LOGITS_PROCESSORS)]
    assert names == ["SteersmanLogits", "SteersmanForbidden"]


def test_a_batch_that_forbids_nothing_is_returned_at_once():
    """Nobody asked: the same tensor comes back, bit for bit."""
    subject = processor()
    subject.update_state(None)
    subject.update_state(update(2, added=[(0, SamplingParams(), []), (1, params(), [])]))
    z = logits(2)
    before = z.clone()
    assert subject.apply(z) is z
    assert torch.equal(z, before)


def test_each_row_has_its_own_terms():
    """What a row forbids is banned in that row alone; all other cells keep their bits."""
    subject = processor()
    added = [
        (0, params("kill"), tokens("I will kil")),
        (1, SamplingParams(), tokens("kil")),
        (2, params("LL", temperature=0), []),
        (3, params("abc", "kill"), tokens("ab")),
        (4, params("xyzzy"), []),
    ]
    subject.update_state(update(5, added=added))
    z = logits(5)
    result = subject.apply(z.clone())
    expected = [{"kill", "Ġkill", "l", "L", "ll"}, set(), {"ll", "kill", "Ġkill"}]
    expected += [{"abc", "kill", "Ġkill", "c", "C"}, set()]
    assert [banned(row) for row in result] == expected
    assert torch.equal(result.where(result > NEG, z), z)


def test_the_likeliest_token_of_a_greedy_row_changes():
    """At temperature 0 the argmax is another token, where the first would complete a term."""
    subject, z = processor(), torch.zeros(1, V)
    z[0, tokens("l")[0]], z[0, tokens("x")[0]] = 9.0, 8.0
    output = tokens("kil")
    subject.update_state(update(1, added=[(0, params("kill", temperature=0), output)]))
    assert subject.apply(z.clone()).argmax() == tokens("x")[0]
    output += tokens("x")
    assert subject.apply(z.clone()).argmax() == tokens("l")[0]


def test_ends_and_unused_tokens_are_never_banned():
    """The tokenizer's special tokens, the model's other ends and padding stay, whatever is forbidden."""
    subject = processor()
    subject.update_state(update(1, added=[(0, params("<", "s", "e", "|"), [])]))
    result = subject.apply(logits(1))[0]
    assert {"s", "S", "e", "<"} <= banned(result)
    assert (result[[END, STOP]] > NEG).all()
    assert (result[len(PIECES) :] > NEG).all()


def test_a_row_of_banned_tokens_alone_keeps_them():
    """Where a grammar leaves nothing else the ban yields, in that row alone, for as long as it must."""
    subject, z = processor(), logits(3)
    outputs = [tokens("kil") for _ in range(3)]
    masked = params("kill", structured_outputs=StructuredOutputsParams(regex="kil+ kill"))
    subject.update_state(update(3, added=[(row, masked, outputs[row]) for row in range(3)]))
    only = torch.full((V,), NEG)
    only[tokens("lL")] = torch.tensor([1.0, 2.0])
    some = only.clone()
    some[END] = 0.0
    z[0], z[1] = only, some
    result = subject.apply(z.clone())
    assert torch.equal(result[0], only)
    assert result[1].isfinite().nonzero().flatten().tolist() == [END]
    assert banned(result[2]) == {"l", "L", "ll", "kill", "Ġkill"}
    outputs[0] += tokens("l ki")
    assert banned(subject.apply(logits(3))[0]) == {"kill", "Ġkill", "ll"}


@pytest.mark.parametrize("mask", [{"allowed_token_ids": [1, 2]}, {"bad_words": ["a"]}])
def test_rows_that_anything_masks_are_looked_at(mask):
    """Allowed ids and bad words may leave as little as a grammar."""
    subject, z = processor(), torch.full((1, V), NEG)
    z[0, tokens("l")[0]] = 1.0
    subject.update_state(update(1, added=[(0, params("l", **mask), [])]))
    assert torch.equal(subject.apply(z.clone()), z)


def test_terms_that_ban_most_tokens_empty_no_row(monkeypatch):
    """A row that nothing masks is looked at too where its own terms leave less than half of it."""
    monkeypatch.setattr(vllm_forbidden.Automaton, "banned", lambda *_: torch.arange(1, V).numpy())
    subject, z = processor(), logits(1)
    z[0, 0] = NEG
    subject.update_state(update(1, added=[(0, params("a"), [])]))
    assert torch.equal(subject.apply(z.clone()), z)


def test_placeholders_are_skipped_until_they_are_tokens():
    """Asynchronous scheduling's -1 is no token; once repaired it counts."""
    subject, output = processor(), tokens("ki")
    subject.update_state(update(1, added=[(0, params("kill"), output)]))
    before = banned(subject.apply(logits(1))[0])
    output.append(-1)
    assert banned(subject.apply(logits(1))[0]) == before == {"ll", "kill", "Ġkill"}
    output[-1] = tokens("l")[0]
    assert banned(subject.apply(logits(1))[0]) == {"l", "L", "ll", "kill", "Ġkill"}
    output[-1:] = [*tokens("x"), -1]
    output[-1] = tokens("y")[0]
    assert banned(subject.apply(logits(1))[0]) >= {"kill", "Ġkill"}


def test_tokens_that_the_engine_takes_back_are_forgotten():
    """Where the live list has become shorter, it is read anew."""
    subject, output = processor(), tokens("kil")
    subject.update_state(update(1, added=[(0, params("kill"), output)]))
    assert "l" in banned(subject.apply(logits(1))[0])
    del output[1:]
    assert banned(subject.apply(logits(1))[0]) == {"kill", "Ġkill"}


def test_a_preempted_request_goes_on():
    """A request that comes back with its output, in a list of its own, is where it was."""
    subject, output = processor(), tokens("say kil")
    subject.update_state(update(1, added=[(0, params("kill"), output)]))
    before = subject.apply(logits(1))
    subject.update_state(update(0, removed=[0]))
    z = logits(1)
    assert torch.equal(subject.apply(z.clone()), z)
    subject.update_state(update(1, added=[(0, params("kill"), list(output))]))
    assert torch.equal(subject.apply(logits(1)), before)


class Fleet:
    """A model of the engine's batch: (terms, output) in rows."""

    def __init__(self, seed):
        self.pick = random.Random(seed)
        self.rows = []
        self.parked = []

    def step(self):
        """One scheduler step as vLLM reports it: removals, additions into holes, condensing moves, swaps."""
        builder = BatchUpdateBuilder()
        for row in range(len(self.rows)):
            if self.pick.random() < 0.15:
                terms, output = self.rows[row]
                self.parked.append((terms, list(output)))
                self.rows[row] = None
                builder.removed_append(row)
        for _ in range(self.pick.randint(0, 2)):
            back = self.parked and self.pick.random() < 0.5  # a preempted request, with its output
            terms, output = self.parked.pop() if back else (self.pick.choice(TERMS), [])
            row = builder.pop_removed()
            if row is None:
                row = len(self.rows)
                self.rows.append(None)
            self.rows[row] = terms, output
            builder.added.append((row, params(*terms), None, output))
        while None in self.rows:
            hole, last = self.rows.index(None), len(self.rows) - 1
            if hole != last and self.rows[last] is not None:
                builder.moved.append((last, hole, ONE_WAY))
                self.rows[hole] = self.rows[last]
            self.rows.pop()
        if len(self.rows) > 1 and self.pick.random() < 0.5:
            a, b = self.pick.sample(range(len(self.rows)), 2)
            builder.moved.append((a, b, SWAP))
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        return builder.get_and_reset(len(self.rows))


TERMS = [(), ("kill",), ("ll", "abc"), ("ab", "bc", "kik")]
LIKELY = [PIECES.index(piece) for piece in ("a", "b", "c", "k", "i", "l", "K", "ki", "ll", "il", "abc")]


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_history_equals_a_record_of_it(seed):
    """However requests come, go, return and move, every row bans what it should, and none writes a term."""
    fleet, subject = Fleet(seed), processor()
    for step in range(50):
        subject.update_state(fleet.step())
        z = logits(len(fleet.rows), seed=step) if fleet.rows else torch.empty(0, V)
        result = subject.apply(z.clone())
        for row, (terms, output) in enumerate(fleet.rows):
            assert banned(result[row]) == completing(output, terms), (seed, step, row, text_of(output))
            assert torch.equal(result[row].where(result[row] > NEG, z[row]), z[row])
            free = [token for token in LIKELY if result[row, token] > NEG]
            output.append(fleet.pick.choice(free) if free else END)
            assert not any(term in text_of(output).lower() for term in terms)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vllms_sampler_never_draws_a_term(temperature):
    """In vLLM's own sampler, greedy and not, a row that forbids the likeliest text goes around it."""
    subject, outputs = processor(), [[], []]
    subject.update_state(update(2, added=[(0, params("kill"), outputs[0]), (1, params(), outputs[1])]))
    none, greedy = torch.zeros(0), temperature == 0
    metadata = SamplingMetadata(
        temperature=None if greedy else torch.full((2,), temperature),
        all_greedy=greedy,
        all_random=not greedy,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=outputs,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors([subject]),
    )
    sampler = Sampler()
    for step in range(24):
        z = torch.full((2, V), -30.0)
        z[:, tokens("kill"[step % 4])] = 30.0
        z[:, tokens("x")] = 20.0
        for output, token in zip(outputs, sampler(z, metadata).sampled_token_ids.tolist(), strict=True):
            output.extend(token)
    assert text_of(outputs[0]) == "kilx" * 6
    assert text_of(outputs[1]) == "kill" * 6


def test_bans_are_worked_out_once_and_kept_within_bounds():
    """A state that comes back costs nothing; the longest unused bans make room for new ones."""
    asked = []

    class Counting:
        def banned(self, state):
            asked.append(state)
            return torch.arange(100).numpy()

    bans, automaton = vllm_forbidden._Bans(Upload(CPU), 3 * (800 + 512)), Counting()
    for state in (0, 1, 2, 0, 1, 2, 0, 3, 2, 0, 3, 1):
        assert len(bans(automaton, state)) == 100
    assert asked == [0, 1, 2, 3, 1]
    assert len(bans._bans) == 3
    assert bans._held == 3 * (800 + 512)


def test_requests_with_equal_terms_share_an_automaton():
    """A policy in daily use is prepared once."""
    subject = processor()
    added = [(row, params("kill", "abc"), []) for row in range(3)]
    subject.update_state(update(3, added=added))
    automata = {id(request.automaton) for _, request in subject._asked}
    assert len(automata) == 1
    assert all(request.state == ROOT for _, request in subject._asked)


def test_without_a_tokenizer_nothing_is_banned(monkeypatch):
    """An engine of token ids alone has no text, and runs."""
    monkeypatch.setattr(vllm_forbidden, "cached_tokenizer_from_config", lambda config: None)
    subject = processor()
    subject.update_state(update(1, added=[(0, params("a"), [5])]))
    z = logits(1)
    assert torch.equal(subject.apply(z.clone()), z)


@pytest.mark.parametrize("encoded", ["x", "[1]", '[""]', 7, ["a"]])
def test_refused_at_admission(encoded):
    """What cannot be honoured is refused before the engine, the field named."""
    with pytest.raises(VLLMValidationError) as error:
        SteersmanForbidden.validate_params(SamplingParams(extra_args={"forbidden_terms": encoded}))
    assert error.value.parameter == "forbidden_terms"
    SteersmanForbidden.validate_params(SamplingParams())
    SteersmanForbidden.validate_params(params("a", n=3, top_p=0.5))


def test_the_host_never_reads_the_device():
    """A step works on tensors without data, where any wait for a GPU's values would raise."""
    subject = processor(torch.device("meta"))
    added = [(0, params("kill"), tokens("kil")), (1, SamplingParams(), []), (2, params("a", "b"), [])]
    subject.update_state(update(3, added=added))
    z = torch.empty(3, V, device="meta")
    with pytest.raises(RuntimeError):
        bool(z.any())
    assert subject.apply(z) is z
