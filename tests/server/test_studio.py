"""What a server needs before it offers steering, on an engine that says what it is asked to."""

from types import SimpleNamespace

import pytest

from server import studio as module
from server.errors import SteersmanError
from server.settings import Settings
from server.studio import Unsteerable, open_studio

LAYERS = 30


class Engine:
    """Has facts, and says that it was measured, which comes next."""

    def __init__(self, client, generate) -> None:
        self.client = client

    async def facts(self):
        return {"problem": None, "layers": LAYERS, "width": 8, "fingerprint": "f", "rows": 1}

    async def capture(self, tokens, spans, layers):
        raise SteersmanError("measured")


async def opened(monkeypatch, tmp_path, rows: int, processes: int) -> str:
    """Why there is no studio."""
    monkeypatch.setattr(module, "SteeringEngine", Engine)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(worker_cls="steering.vllm_worker.SteeringWorker"),
        model_config=SimpleNamespace(max_model_len=64, model="m"),
    )
    tokenizer = SimpleNamespace(encode=lambda text, **_: list(text.encode()))
    client = SimpleNamespace(vllm_config=config, generate=None, renderer=SimpleNamespace(tokenizer=tokenizer))
    settings = Settings(tmp_path, "", steering_rows=rows)
    store = SimpleNamespace(database=None)
    found = await open_studio(client, "m", settings, store, processes=processes)
    assert isinstance(found, Unsteerable)
    return found.problem


@pytest.mark.parametrize(
    ("rows", "processes", "says"),
    [
        (16, 1, "has 16 lines; a vector at all 30 layers takes as many (--steering-rows)"),
        (100, 4, "has 100 lines, 25 for each of 4 API servers; a vector at all 30 layers"),
        (3, 4, "has 3 lines, 0 for each of 4 API servers"),
    ],
)
async def test_a_table_too_small_for_the_model_is_told(monkeypatch, tmp_path, rows, processes, says):
    """Before anything is loaded: what there is, what is needed, and the flag that changes it."""
    assert says in await opened(monkeypatch, tmp_path, rows, processes)


@pytest.mark.parametrize(("rows", "processes"), [(30, 1), (120, 4)])
async def test_a_table_that_is_just_large_enough(monkeypatch, tmp_path, rows, processes):
    """A line per layer for each API server will do: the model is measured."""
    assert await opened(monkeypatch, tmp_path, rows, processes) == "measured"
