"""How a server starts whose engine cannot be steered: it says why, and serves."""

from types import SimpleNamespace

import pytest

from server.behaviors import Behaviors
from server.jobs import Jobs
from server.settings import Settings
from server.studio import Records, Unsteerable, open_studio
from server.vectors import Vectors


class Client:
    """An engine client whose workers answer `facts`, or raise what stands in their place."""

    def __init__(self, *facts, generate=None, tokenizer=True, errored=False) -> None:
        self.facts, self.errored = list(facts), errored
        parallel = SimpleNamespace(worker_cls="steering.x", data_parallel_size=1)
        model = SimpleNamespace(max_model_len=100, max_logprobs=5, model="m")
        self.vllm_config = SimpleNamespace(parallel_config=parallel, model_config=model, lora_config=None)
        words = SimpleNamespace(encode=lambda text, **_: list(text.encode()))
        self.renderer = SimpleNamespace(tokenizer=words if tokenizer else None)
        self.failure = generate

    async def generate(self, *args, **kwargs):
        raise self.failure
        yield

    async def collective_rpc(self, method, args=()):
        if method != "steersman_facts":
            return [None]
        facts = self.facts.pop(0)
        if isinstance(facts, Exception):
            raise facts
        return [facts]


FACTS = {"problem": None, "layers": 2, "width": 4, "fingerprint": "f", "rows": 9}


async def opened(client, tmp_path, processes=1):
    settings = Settings(tmp_path, "sqlite://")
    records = Records(Vectors(None), Jobs(None), Behaviors(None))
    return await open_studio(client, "m", settings, records, processes=processes)


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        (Client(FACTS | {"problem": "the second runner is on"}), "the second runner is on"),
        (Client(tokenizer=False), "without a tokenizer"),
        (Client(RuntimeError("worker said no")), "broke off: RuntimeError('worker said no')"),
        (Client(FACTS, generate=ValueError("no logprobs")), "broke off: ValueError('no logprobs')"),
    ],
)
async def test_whatever_the_test_at_start_meets_is_a_reason(client, problem, tmp_path):
    """Not the end of the server, as long as the engine lives."""
    found = await opened(client, tmp_path)
    assert isinstance(found, Unsteerable)
    assert problem in found.problem


async def test_a_dead_engine_ends_the_start(tmp_path):
    """Then nothing can be served at all."""
    with pytest.raises(RuntimeError, match="gone"):
        await opened(Client(RuntimeError("gone"), errored=True), tmp_path)


async def test_what_a_first_request_finds_is_the_reason(tmp_path):
    """On a CPU a block that returns no state is known only after the capture that came back short."""

    class Short(Client):
        async def generate(self, *args, **kwargs):
            yield None

    known = FACTS | {"problem": "decoder block 0 returns list"}
    found = await opened(Short(FACTS, known), tmp_path)
    assert found.problem == "decoder block 0 returns list"


@pytest.mark.parametrize(
    ("rows", "processes", "says"),
    [
        (16, 1, "has 16 lines; a vector at all 30 layers takes as many (--steering-rows)"),
        (100, 4, "has 100 lines, 25 for each of 4 API servers; a vector at all 30 layers"),
        (3, 4, "has 3 lines, 0 for each of 4 API servers"),
    ],
)
async def test_a_table_too_small_for_the_model_is_told(tmp_path, rows, processes, says):
    """Before anything is loaded: what there is, what is needed, and the flag that changes it."""
    found = await opened(Client(FACTS | {"layers": 30, "rows": rows}), tmp_path, processes)
    assert says in found.problem


@pytest.mark.parametrize(("rows", "processes"), [(30, 1), (120, 4)])
async def test_a_table_that_is_just_large_enough(tmp_path, rows, processes):
    """A line per layer for each API server will do: the model is measured."""
    client = Client(FACTS | {"layers": 30, "rows": rows}, generate=ValueError("measured"))
    assert "measured" in (await opened(client, tmp_path, processes)).problem
