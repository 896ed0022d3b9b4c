import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors here are tiny: two threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
