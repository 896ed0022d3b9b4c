"""Parity with what sae-lens gave for the same weights and states; see `record_sae_lens.py`."""

import json

import pytest
import torch

from steering.sae import saelens
from steering.sae.load import load
from tests.steering.sae.record_sae_lens import RECORDED, cases, recorded_states

MOST = 1e-4
KNOWN = json.loads(RECORDED.read_text())["cases"]
CASES = dict(cases())


def test_every_case_is_recorded():
    assert KNOWN.keys() == CASES.keys()
    assert len(KNOWN) == 25


@pytest.mark.parametrize("name", CASES)
def test_latents_and_reconstructions_are_those_of_sae_lens(tmp_path, name):
    """From the file, whole and the few that a behaviour needs, within 1e-4 in float32."""
    saelens.write(CASES[name], tmp_path)
    ours, states, known = load(tmp_path), recorded_states(), KNOWN[name]
    latents = torch.zeros(len(states), ours.d_sae)
    for row, active in enumerate(known["latents"]):
        for index, value in active:
            latents[row, index] = value
    assert latents.count_nonzero() > len(states)
    assert float((ours.encode(states) - latents).abs().max()) <= MOST
    reconstructions = torch.tensor(known["reconstructions"])  # of hundreds, where float32 has steps of 3e-5
    assert torch.allclose(ours.decode(latents, states), reconstructions, rtol=1e-6, atol=MOST)
    some = [1, 20, 44]
    assert float((ours.encode_some(states, some) - latents[:, some]).abs().max()) <= MOST
    assert float((ours.reads_only(some).encode(states) - latents[:, some]).abs().max()) <= MOST
