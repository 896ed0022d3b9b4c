import math
import random
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import TypicalLogitsWarper
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder

from processors.ads import AdsRows, ads
from processors.args import AdsArgs, ProcessorArgs, TypicalArgs
from processors.embedding_table import TableError, build_table
from processors.ring import MAX_COVERED, window
from processors.vllm_logits import TABLE_KEY, SteersmanLogits

V = 500
NEG = -math.inf
ONE_WAY, SWAP = MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP


def engine_config(max_num_seqs=16, **additional):
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
        model_config=SimpleNamespace(get_vocab_size=lambda: V),
        additional_config=additional,
    )


def processor(**kwargs):
    return SteersmanLogits(engine_config(**kwargs), torch.device("cpu"), False)


def params(typical=None, ads=None, **kwargs):
    return SamplingParams(extra_args=ProcessorArgs(typical, ads).to_extra_args(), **kwargs)


def update(size, removed=(), added=(), moved=()):
    return BatchUpdate(size, removed, [(row, p, None, output) for row, p, output in added], moved)


def logits(count, seed=0):
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 3


def expected_typical(z, mass):
    return TypicalLogitsWarper(mass)(None, z[None])[0]


def expected_ads(z, args, covered=()):
    """The row function on one row, itself tested against the definition."""
    rows = AdsRows(
        pool=torch.tensor([min(args.subset_size, args.top_k or args.subset_size)]),
        strength=torch.tensor([args.beta / (1 - args.beta)]),
        top_p=torch.tensor([args.top_p]),
        log_min_p=torch.tensor([args.min_p]).log(),
        nucleus=args.top_p < 1,
        floor=args.min_p > 0,
    )
    tokens = [*covered, *[-1] * (MAX_COVERED - len(covered))]
    return ads(z[None].clone(), rows, torch.tensor([tokens]))[0]


def test_is_a_processor_that_runs_after_temperature():
    """vLLM accepts the class, and argmax-invariance places it after temperature."""
    assert issubclass(SteersmanLogits, LogitsProcessor)
    assert processor().is_argmax_invariant() is True


def test_a_batch_without_methods_is_returned_at_once():
    """Nobody asked: the same tensor comes back, bit for bit."""
    subject = processor()
    subject.update_state(None)
    subject.update_state(update(2, added=[(0, SamplingParams(), []), (1, params(), [])]))
    z = logits(2)
    before = z.clone()
    assert subject.apply(z) is z
    assert torch.equal(z, before)


def test_each_row_gets_its_own_method():
    """Typical, ADS, both, typical with min-p, and none in one batch; the last row's bits stay."""
    subject = processor()
    ads_args = AdsArgs(subset_size=5, top_p=0.9)
    requests = [
        params(TypicalArgs(0.4)),
        SamplingParams(),
        params(ads=ads_args),
        params(TypicalArgs(0.8), ads_args),
        params(TypicalArgs(0.9, min_p=0.3)),
        params(TypicalArgs(1.0)),
    ]
    subject.update_state(update(6, added=[(row, request, []) for row, request in enumerate(requests)]))
    z = logits(6)
    result = subject.apply(z.clone())
    assert torch.equal(result[0], expected_typical(z[0], 0.4))
    assert torch.equal(result[1], z[1])
    assert torch.equal(result[2], expected_ads(z[2], ads_args))
    assert torch.equal(result[3], expected_ads(expected_typical(z[3], 0.8), ads_args))
    left = expected_typical(z[4], 0.9)
    assert torch.equal(result[4], left.masked_fill(left < left.max() + math.log(0.3), NEG))
    assert torch.equal(result[5], z[5])


def test_min_p_alone_after_an_idle_typical():
    """With typical off, its min-p is still applied."""
    subject = processor()
    subject.update_state(update(1, added=[(0, params(TypicalArgs(1.0, min_p=0.5)), [])]))
    z = logits(1)
    assert torch.equal(subject.apply(z.clone()), z.masked_fill(z < z.max() + math.log(0.5), NEG))


def test_greedy_rows_are_left_alone():
    """At temperature 0 neither method touches the row."""
    subject = processor()
    subject.update_state(update(1, added=[(0, params(TypicalArgs(0.1), AdsArgs(), temperature=0), [])]))
    z = logits(1)
    assert torch.equal(subject.apply(z.clone()), z)


def pair(group=7, siblings=2, beta=0.5):
    return [AdsArgs(beta=beta, group=group, slot=slot, siblings=siblings) for slot in range(siblings)]


def test_siblings_see_each_others_tokens_and_not_their_own():
    """A token one slot said is covered for the other, from the live output list."""
    subject, (first, second) = processor(), pair()
    outputs = [[], []]
    subject.update_state(
        update(2, added=[(0, params(ads=first), outputs[0]), (1, params(ads=second), outputs[1])])
    )
    z = logits(1).repeat(2, 1)
    assert torch.equal(subject.apply(z.clone()), torch.stack([expected_ads(z[0], first)] * 2))
    top = int(z[0].argmax())
    outputs[0].append(top)
    subject.update_state(None)
    result = subject.apply(z.clone())
    assert torch.equal(result[0], expected_ads(z[0], first))
    assert torch.equal(result[1], expected_ads(z[1], second, [top]))
    assert not torch.equal(result[0], result[1])


def test_placeholders_are_skipped_until_they_are_tokens():
    """Asynchronous scheduling's -1 is no token; once repaired it counts, though no longer the last."""
    subject, (first, second) = processor(), pair()
    output = []
    subject.update_state(update(2, added=[(0, params(ads=first), output), (1, params(ads=second), [])]))
    z = logits(1).repeat(2, 1)
    top = int(z[0].argmax())
    output.append(-1)
    assert torch.equal(subject.apply(z.clone())[1], expected_ads(z[1], second))
    output[:] = [top, -1]
    assert torch.equal(subject.apply(z.clone())[1], expected_ads(z[1], second, [top]))
    output[:] = [top, top]
    assert torch.equal(subject.apply(z.clone())[1], expected_ads(z[1], second, [top, top]))


def test_a_finished_sibling_still_counts():
    """What a sibling said stays covered after it left the batch."""
    subject, (first, second) = processor(), pair()
    z = logits(1)
    top = int(z[0].argmax())
    subject.update_state(update(2, added=[(0, params(ads=second), []), (1, params(ads=first), [top])]))
    subject.apply(z.repeat(2, 1))
    subject.update_state(update(1, removed=[1]))
    assert torch.equal(subject.apply(z.clone())[0], expected_ads(z[0], second, [top]))


def test_no_leak_between_groups():
    """Whatever group A says, group B's rows keep their bits; so do slots of one group sent with another n."""
    z = logits(1).repeat(3, 1)
    results = []
    for tokens in ([], [1, 2, 3], z[0].topk(8).indices.tolist()):
        subject = processor()
        rows = [AdsArgs(group=1, slot=0, siblings=2), AdsArgs(group=2, slot=1, siblings=2)]
        rows.append(AdsArgs(group=1, slot=1, siblings=3))
        outputs = [list(tokens), [], []]
        added = [(row, params(ads=a), outputs[row]) for row, a in enumerate(rows)]
        subject.update_state(update(3, added=added))
        results.append(subject.apply(z.clone())[1:])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_with_a_table_similar_tokens_are_covered(tmp_path):
    """A configured table switches the kernel on; one that does not fit stops the start."""
    from safetensors.torch import save_file

    weights = torch.randn(V, 64, generator=torch.Generator().manual_seed(0))
    weights[1] = weights[0]
    save_file({"table": build_table(weights)}, tmp_path / "table.safetensors")
    z = torch.full((2, V), NEG)
    z[:, 1:9] = 0.0
    added = [(row, params(ads=a), [[0] * 3, []][row]) for row, a in enumerate(pair())]
    plain, kernel = processor(), processor(**{TABLE_KEY: str(tmp_path / "table.safetensors")})
    for subject in (plain, kernel):
        subject.update_state(update(2, added=added))
    assert torch.equal(plain.apply(z.clone())[1], z[1])  # token 0 itself is not in the pool
    r = kernel.apply(z.clone())[1].softmax(-1)
    assert r[1] < 0.9 * r[2:9].min()
    save_file({"table": build_table(weights[:400])}, tmp_path / "short.safetensors")
    with pytest.raises(TableError):
        processor(**{TABLE_KEY: str(tmp_path / "short.safetensors")})


class Fleet:
    """A model of the engine's batch: requests in rows, with a plain record of who said what."""

    def __init__(self, seed):
        self.pick = random.Random(seed)
        self.rows = []
        self.parked = []
        self.groups = 0
        self.said = {}  # (group, slot) → tokens

    def newcomers(self):
        if self.parked and self.pick.random() < 0.5:
            return [self.parked.pop()]  # a preempted request comes back with its output
        kind = self.pick.choice(["plain", "typical", "ads", "alone", "both"])
        if kind in ("plain", "alone"):
            args = ProcessorArgs(ads=AdsArgs(group=self.pick.randrange(99)) if kind == "alone" else None)
            return [SimpleNamespace(args=args, output=[])]
        if kind == "typical":
            return [SimpleNamespace(args=ProcessorArgs(TypicalArgs(self.pick.uniform(0.2, 0.9))), output=[])]
        self.groups += 1
        siblings = self.pick.randint(2, 4)
        typical = TypicalArgs(0.9) if kind == "both" else None
        return [
            SimpleNamespace(
                args=ProcessorArgs(typical, AdsArgs(8, 0.5, self.groups, slot, siblings)), output=[]
            )
            for slot in range(siblings)
        ]

    def step(self, limit):
        """One scheduler step as vLLM reports it: removals, additions into holes, condensing moves, swaps."""
        builder = BatchUpdateBuilder()
        for row in range(len(self.rows)):
            if self.pick.random() < 0.15:
                if self.pick.random() < 0.4:
                    self.parked.append(self.rows[row])
                self.rows[row] = None
                builder.removed_append(row)
        fresh = self.newcomers() if self.pick.random() < 0.5 else []
        for request in fresh:
            row = builder.pop_removed()
            row = len(self.rows) if row is None else row
            if row >= limit:
                self.parked.append(request)
                continue
            if row == len(self.rows):
                self.rows.append(None)
            self.rows[row] = request
            sampling = SamplingParams(extra_args=request.args.to_extra_args())
            builder.added.append((row, sampling, None, request.output))
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

    def covered(self, args):
        others = (self.said.get((args.group, slot), []) for slot in range(args.siblings) if slot != args.slot)
        return [token for tokens in others for token in tokens[-window(args.siblings) :]]

    def expected(self, z, request):
        if request.args.typical:
            z = expected_typical(z, request.args.typical.mass)
        if request.args.ads:
            args = request.args.ads
            z = expected_ads(z, args, self.covered(args) if args.siblings > 1 else [])
        return z


@pytest.mark.parametrize("seed", range(12))
def test_any_batch_history_equals_a_record_of_it(seed):
    """Over many steps of adding, removing, preempting, moving and swapping, every row gets what it should."""
    fleet, limit = Fleet(seed), 10
    subject = processor(max_num_seqs=limit * 40)  # wide enough to forget nobody
    for step in range(60):
        subject.update_state(fleet.step(limit))
        for request in fleet.rows:
            if request.args.ads:
                fleet.said[request.args.ads.group, request.args.ads.slot] = list(request.output)
        z = logits(len(fleet.rows), seed=step) if fleet.rows else torch.empty(0, V)
        result = subject.apply(z.clone())
        for row, request in enumerate(fleet.rows):
            assert torch.equal(result[row], fleet.expected(z[row], request)), (seed, step, row)
        for row, request in enumerate(fleet.rows):
            request.output.append(int(result[row].argmax()))


def test_history_outlives_many_short_neighbours():
    """With the ring as small as the batch, live groups keep their history while others come and go."""
    subject, (first, second) = processor(max_num_seqs=3), pair(group=5)
    z = logits(1).repeat(3, 1)
    top = int(z[0].argmax())
    subject.update_state(update(2, added=[(0, params(ads=first), [top]), (1, params(ads=second), [])]))
    subject.apply(z[:2].clone())
    for group in range(100, 120):
        visitor = AdsArgs(group=group, siblings=2)
        subject.update_state(update(3, added=[(2, params(ads=visitor), [3])]))
        result = subject.apply(z.clone())
        assert torch.equal(result[1], expected_ads(z[1], second, [top]))
        assert torch.equal(result[2], expected_ads(z[2], visitor))


@pytest.mark.parametrize(
    ("extra", "native", "field"),
    [
        ({"ads_beta": 0.95}, {}, "ads_beta"),
        ({"typical_p": 0.0}, {}, "typical_p"),
        ({"ads_beta": 0.3}, {"top_p": 0.9}, "top_p"),
        ({"ads_beta": 0.3}, {"top_k": 10}, "top_k"),
        ({"ads_beta": 0.3}, {"min_p": 0.1}, "min_p"),
        ({"ads_beta": 0.3}, {"n": 2}, "n"),
        ({"typical_p": 0.9}, {"min_p": 0.1}, "min_p"),
    ],
)
def test_refused_at_admission(extra, native, field):
    """What cannot be honoured is refused before the engine, the field named."""
    with pytest.raises(VLLMValidationError) as error:
        SteersmanLogits.validate_params(SamplingParams(extra_args=extra, **native))
    assert error.value.parameter == field


@pytest.mark.parametrize(
    ("extra", "native"),
    [
        (None, {"min_p": 0.1, "top_p": 0.9, "n": 3}),
        ({"ads_beta": 0.3, "ads_top_p": 0.9}, {}),
        ({"ads_beta": 0.3}, {"top_k": -1}),
        ({"typical_p": 0.9, "typical_min_p": 0.1}, {"top_p": 0.9, "top_k": 40}),
    ],
)
def test_accepted_at_admission(extra, native):
    """Other requests keep their native parameters; typical lets native top-k and top-p follow it."""
    SteersmanLogits.validate_params(SamplingParams(extra_args=extra, **native))


def test_loads_by_qualified_name():
    """The name given to --logits-processors is importable the way vLLM imports it."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    assert _load_logitsprocs_by_fqcns(["processors.vllm_logits:SteersmanLogits"]) == [SteersmanLogits]


@pytest.mark.parametrize("kernel", [False, True])
def test_the_host_never_reads_the_device(tmp_path, kernel):
    """A step works on tensors without data, where any wait for a GPU's values would raise."""
    from safetensors.torch import save_file

    save_file({"table": torch.eye(V).half()}, tmp_path / "table.safetensors")
    additional = {TABLE_KEY: str(tmp_path / "table.safetensors")} if kernel else {}
    subject = SteersmanLogits(engine_config(**additional), torch.device("meta"), False)
    first, second = (AdsArgs(group=1, slot=slot, siblings=2, top_p=0.9, min_p=0.1) for slot in (0, 1))
    requests = [params(TypicalArgs(0.9, 0.1), first), SamplingParams(), params(ads=second)]
    added = [(row, request, [1, 2, 3]) for row, request in enumerate(requests)]
    subject.update_state(update(3, added=added))
    z = torch.empty(3, V, device="meta")
    with pytest.raises(RuntimeError):
        bool(z.any())
    assert subject.apply(z) is z
    subject.update_state(update(2, removed=[0], moved=[(2, 0, ONE_WAY)]))
    subject.apply(torch.empty(2, V, device="meta"))
