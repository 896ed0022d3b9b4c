"""What `steersman serve` makes of its flags on a CPU."""

from types import SimpleNamespace

import pytest

from server import vllm_cpu
from server.settings import Settings
from server.vllm_launch import _complete, _parse


@pytest.fixture
def machine(monkeypatch):
    """Says how many cores, of two CPUs each, and memory nodes there are. Nothing is set already."""
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "CXX"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def has(*, cores=2, nodes=1):
        cpus = [SimpleNamespace(physical_core=number // 2) for number in range(2 * cores)]
        monkeypatch.setattr(vllm_cpu, "get_allowed_cpu_list", lambda: cpus)
        monkeypatch.setattr(vllm_cpu, "get_visible_memory_node", lambda: list(range(nodes)))

    has()
    return has


@pytest.fixture
def completed(tmp_path, machine):
    """What flags come to."""

    def found(*flags):
        args = _parse(["model", *flags])
        _complete(args, Settings(tmp_path, "sqlite://"))
        return args

    return found


@pytest.fixture
def executor(completed):
    """The executor that flags lead to."""
    return lambda *flags: completed(*flags).distributed_executor_backend


@pytest.mark.parametrize(
    ("capability", "flags", "dtype"),
    [("AVX2", (), "float32"), ("AVX512", (), "auto"), ("AVX2", ("--dtype", "bfloat16"), "bfloat16")],
)
def test_a_cpu_without_bfloat16_computes_in_float32(completed, monkeypatch, capability, flags, dtype):
    monkeypatch.setattr(vllm_cpu.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert completed(*flags).dtype == dtype


def test_nothing_is_compiled_where_no_compiler_is(completed, monkeypatch):
    """vLLM's engine would die of it at the first log-probabilities; --compile says what it lacks."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "")
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    completed("--compile")
    assert "TORCH_COMPILE_DISABLE" not in vllm_cpu.os.environ
    monkeypatch.setenv("CXX", "no-such-compiler")
    completed()
    assert vllm_cpu.os.environ["TORCH_COMPILE_DISABLE"] == "1"
    with pytest.raises(SystemExit, match=r"--compile.*no-such-compiler"):
        completed("--compile")


def test_one_worker_runs_in_the_engines_process(executor):
    """Its short name would not do: vLLM turns it back into the one of several processes."""
    assert executor() == vllm_cpu.IN_ENGINE
    assert executor("--disable-steering") == vllm_cpu.IN_ENGINE
    assert executor("--enable-lora") == vllm_cpu.IN_ENGINE


@pytest.mark.parametrize(
    "flags",
    [
        ("--tensor-parallel-size", "2"),
        ("--pipeline-parallel-size", "2"),
        ("--data-parallel-size", "2"),
        ("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'),
    ],
)
def test_several_keep_theirs(executor, flags, monkeypatch):
    """vLLM lays those out, and no number of threads is set for all of them."""
    assert executor(*flags) is None
    assert "OMP_NUM_THREADS" not in vllm_cpu.os.environ


def test_a_layout_asked_for_is_kept(executor, machine, monkeypatch):
    """By flag, by a list of cores, or because of memory nodes."""
    assert executor("--distributed-executor-backend", "mp") == "mp"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert executor() is None
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    machine(nodes=2)
    assert executor() is None


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (16, 15)])
def test_threads(executor, machine, monkeypatch, cores, threads):
    """One a physical core, less one for the API server."""
    machine(cores=cores)
    executor()
    assert vllm_cpu.os.environ["OMP_NUM_THREADS"] == str(threads)


def test_threads_asked_for(executor, machine, monkeypatch):
    """OpenMP's own variable wins; what vLLM is told to reserve is reserved; unbound, none are counted."""
    machine(cores=8)
    monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "3")
    executor()
    assert vllm_cpu.os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    executor()
    assert vllm_cpu.os.environ["OMP_NUM_THREADS"] == "4"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert executor() == vllm_cpu.IN_ENGINE
    assert "OMP_NUM_THREADS" not in vllm_cpu.os.environ
