"""What a model loses by reconstructions, against the same model run in two parts."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from steering.sae.cross_entropy import CrossEntropies, cross_entropies
from steering.sae.encode import Architecture
from steering.sae.errors import SaeError
from steering.sae.sae import SparseAutoencoder
from steering.train.pairs import Answer
from steering.train.tail import Tail, batches

WIDTH, VOCABULARY, LAYERS, LAYER = 24, 50, 3, 1
TEXTS = [np.random.default_rng(seed).integers(2, VOCABULARY, 12).tolist() for seed in range(3)]
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, initializer_range=0.3),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


@pytest.fixture
def sae(made):
    random = np.random.default_rng(0)
    read = torch.from_numpy(random.normal(size=(WIDTH, 40)).astype(np.float32)) / WIDTH**0.5
    return SparseAutoencoder(
        architecture=Architecture.STANDARD,
        W_enc=read,
        W_dec=read.T.contiguous(),
        b_enc=torch.zeros(40),
        b_dec=torch.zeros(WIDTH),
        layer=LAYER,
    )


def reference(model, replace):
    """Text by text: states of the block, replaced but for the first, then the rest of the model."""
    tail, total, count = Tail(model), 0.0, 0
    for ids in TEXTS:
        [batch] = batches([Answer(tuple(ids), 1, len(ids) - 1)], "cpu")
        state = tail.states(batch, [LAYER])[LAYER]
        state = torch.cat([state[:, :1], replace(state[:, 1:])], dim=1)
        with torch.no_grad():
            logits = tail.logits(tail.hidden(batch, LAYER, state, {}))
        chosen = torch.log_softmax(logits, dim=-1)[range(len(batch.targets)), batch.targets]
        total, count = total - float(chosen.sum()), count + len(batch.targets)
    return total / count


def test_as_the_model_in_two_parts(model, sae):
    """Clean, reconstructed and ablated, each to rounding."""
    mean = np.full(WIDTH, 0.25, np.float32)
    found = cross_entropies(model, sae, TEXTS, mean, longest=float("inf"))
    assert found.tokens == 3 * 10
    assert found.clean == pytest.approx(reference(model, lambda x: x), rel=1e-5)
    assert found.reconstructed == pytest.approx(
        reference(model, lambda x: sae.decode(sae.encode(x))), rel=1e-5
    )
    assert found.ablated == pytest.approx(reference(model, lambda x: torch.full_like(x, 0.25)), rel=1e-5)
    assert len({found.clean, found.reconstructed, found.ablated}) == 3


def test_sinks_stay_as_they_are(model, sae):
    """States beyond `longest` are replaced by nothing; if all are, nothing changes."""
    found = cross_entropies(model, sae, TEXTS, np.zeros(WIDTH, np.float32), longest=0.0)
    assert found.clean == found.reconstructed == found.ablated
    with pytest.raises(SaeError, match="must rise"):
        _ = found.recovered


def test_nothing_is_left_behind(model, sae):
    """The model predicts afterwards as before."""
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        cross_entropies(model, sae, TEXTS, np.zeros(WIDTH, np.float32), longest=1e9)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)


def test_the_share_recovered():
    """1 at no loss, 0 at the loss of the mean."""
    found = CrossEntropies(10, clean=2.0, reconstructed=2.5, ablated=6.0)
    assert found.recovered == pytest.approx(7 / 8)
    assert dataclasses.replace(found, reconstructed=6.0).recovered == 0


def test_texts_too_short(model, sae):
    """What follows the first token alone is not counted."""
    with pytest.raises(SaeError, match="at least 3 tokens"):
        cross_entropies(model, sae, [[1, 2], [3]], np.zeros(WIDTH, np.float32), longest=1e9)
