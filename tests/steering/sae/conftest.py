import numpy as np
import pytest
import torch

from steering.sae.encode import Architecture
from steering.sae.sae import Gate, SparseAutoencoder

WIDTH, LATENTS = 24, 60


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tensors here are tiny: two threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def states():
    return random_states()


def random_states():
    """`[3, 7, width]`, of uneven lengths, as the residual stream has them."""
    random = np.random.default_rng(5)
    rows = random.normal(size=(3, 7, WIDTH)) * random.uniform(0.5, 20, (3, 7, 1)) + 0.7
    return torch.from_numpy(rows.astype(np.float32))


@pytest.fixture
def made():
    return make


def make(architecture, seed=0, **changed):
    """An autoencoder of random weights, decoder rows of uneven lengths."""
    random = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return torch.from_numpy((scale * random.normal(size=shape)).astype(np.float32))

    parts = {
        "architecture": architecture,
        "W_enc": normal(WIDTH, LATENTS, scale=WIDTH**-0.5),
        "W_dec": normal(LATENTS, WIDTH) * (0.5 + normal(LATENTS, 1).abs()),
        "b_enc": normal(LATENTS, scale=0.3),
        "b_dec": normal(WIDTH),
        "layer": 3,
        "hook": "blocks.3.hook_resid_post",
        "model": "toy",
        "apply_b_dec_to_input": True,
    }
    if architecture is Architecture.TOPK:
        parts["k"] = 7
    if architecture in {Architecture.JUMPRELU, Architecture.BATCHTOPK}:
        parts["threshold"] = normal(LATENTS).abs()
    if architecture is Architecture.GATED:
        parts["b_enc"] = None
        parts["gate"] = Gate(
            normal(LATENTS, scale=0.3), normal(LATENTS, scale=0.3), normal(LATENTS, scale=0.3)
        )
    return SparseAutoencoder(**(parts | changed))
