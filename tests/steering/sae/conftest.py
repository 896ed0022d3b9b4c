import pytest
import torch

from tests.steering.sae.toys import make, random_states


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


@pytest.fixture
def made():
    return make
