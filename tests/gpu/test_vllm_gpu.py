"""What only a GPU can show: the same masks as on a CPU, no wait for the device, a served engine."""

import math
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate

from processors.args import AdsArgs, ProcessorArgs, TypicalArgs
from processors.ban import ban
from processors.min_p import min_p
from processors.typical import typical
from processors.upload import Upload
from processors.vllm_logits import SteersmanLogits
from tests.conftest import start_server, stop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its driver"),
]

VOCAB = 49_152


def logits(rows, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def processor(device):
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=64),
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCAB),
        additional_config={},
    )
    return SteersmanLogits(config, torch.device(device), device == "cuda")


def batch(outputs):
    """Two ADS siblings, one typical, one plain row."""
    params = [
        ProcessorArgs(ads=AdsArgs(group=7, slot=0, siblings=2, top_p=0.95)),
        ProcessorArgs(ads=AdsArgs(group=7, slot=1, siblings=2, beta=0.5)),
        ProcessorArgs(typical=TypicalArgs(0.9, min_p=0.05)),
        ProcessorArgs(),
    ]
    added = [
        (row, SamplingParams(extra_args=args.to_extra_args()), None, outputs[row])
        for row, args in enumerate(params)
    ]
    return BatchUpdate(len(params), [], added, [])


def kept(z):
    return torch.isfinite(z).cpu()


def test_row_functions_keep_the_same_tokens_on_both_devices():
    """Typical and min-p masks of 64 rows differ from the CPU's in boundary tokens of a few rows at most."""
    z = logits(64)
    mass = torch.linspace(0.1, 0.99, 64)
    differing = (kept(typical(z.cuda(), mass.cuda())) != kept(typical(z, mass))).sum(-1)
    assert int(differing.max()) <= 1  # sums of probabilities round in another order
    assert int((differing > 0).sum()) <= 3
    floor = torch.full((64,), math.log(0.05))
    assert torch.equal(kept(min_p(z.cuda(), floor.cuda())), kept(min_p(z, floor)))


@pytest.mark.parametrize("yields", [False, True])
def test_bans_are_the_same_on_both_devices_and_wait_for_none(yields):
    """Rows lose the same tokens as on a CPU, also where one would be emptied, without a synchronisation."""
    z, rows = logits(32), [0, 3, 31]
    z[3, 2:] = -math.inf
    banned = [torch.arange(5), torch.arange(2), torch.arange(0, VOCAB, 3)]
    expected, device = z.clone(), Upload(torch.device("cuda"), pinned=True)
    ban(expected, rows, banned, Upload(torch.device("cpu")), yields=yields)
    result, there = z.cuda(), [ids.cuda() for ids in banned]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ban(result, rows, there, device, yields=yields)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result.cpu(), expected)


def test_a_decode_step_never_waits_for_the_gpu():
    """With synchronisation made an error, steps of a mixed batch run, new sibling tokens included."""
    outputs = [[], [], [], []]
    subject = processor("cuda")
    subject.update_state(batch(outputs))
    steps = [logits(4, seed).cuda() for seed in range(8)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, z in enumerate(steps):
            subject.update_state(None)
            subject.apply(z)
            for row, output in enumerate(outputs):
                output.append(100 * row + step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_mixed_batch_agrees_with_the_cpu():
    """Every step's rows equal the CPU's within float32 rounding."""
    ours, theirs = [[], [], [], []], [[], [], [], []]
    cpu, gpu = processor("cpu"), processor("cuda")
    cpu.update_state(batch(ours))
    gpu.update_state(batch(theirs))
    for step in range(6):
        z = logits(4, step)
        expected, result = cpu.apply(z.clone()), gpu.apply(z.cuda()).cpu()
        assert int((kept(expected) != kept(result)).sum()) <= 1
        both = kept(expected) & kept(result)
        assert torch.allclose(expected[both], result[both], atol=1e-4)
        for outputs in (ours, theirs):
            for row, output in enumerate(outputs):
                output.append(step + row % 2)


def test_every_method_is_served(model_path, tmp_path):
    """An engine with CUDA graphs answers each method, and greedy answers repeat."""
    live = start_server(
        tmp_path, str(model_path), "--max-model-len", "2048", "--gpu-memory-utilization", "0.3"
    )
    try:
        with live.client() as http:
            for body in (
                {"temperature": 0},
                {"sampling_method": "typical"},
                {"sampling_method": "ads", "n": 4},
                {"sampling_method": "guided-generation", "regex_pattern": "(yes|no)"},
                {"sampling_method": "constrained-beam-search"},
            ):
                asked = {"messages": [{"role": "user", "content": "Is water wet?"}], "max_tokens": 16, **body}
                answers = [http.post("/v1/chat/completions", json=asked) for _ in range(2)]
                assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
                if body.get("temperature") == 0:
                    first, second = (answer.json()["choices"][0]["message"]["content"] for answer in answers)
                    assert first == second
    finally:
        stop(live.process)
