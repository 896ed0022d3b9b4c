"""vLLM on a CPU: the defaults it needs there, and one process where vLLM would run two."""

import os
import shutil
import sys
from argparse import Namespace

import torch
from vllm import envs
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_visible_memory_node

# There vLLM computes bfloat16, which most models are stored in, by way of float32, weight by weight: twice to
# four times as slow as to keep all in float32, in twice the memory.
_WITHOUT_BFLOAT16 = "AVX2"
IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def defaults() -> dict[str, object]:
    """Flags whose defaults differ from vLLM's."""
    return {
        # Here it means the share of the machine's memory that must be free at start.
        "gpu_memory_utilization": 0.3,
        # A seeded request whose prefill is cut kills vLLM 0.32's engine: its runner rewinds the request's
        # random generator, which on a CPU cannot be.
        "enable_chunked_prefill": False,
    }


def complete(args: Namespace) -> None:
    """What follows from the flags on a CPU."""
    if args.enable_chunked_prefill:
        sys.exit("--enable-chunked-prefill: on a CPU, vLLM's engine dies of a seeded request's second chunk")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        if args.steersman_compile:
            sys.exit(f"--compile: no C++ compiler is here; {compiler} (or what CXX names) is needed")
        # In eager mode too vLLM has torch compile parts of its sampler, and its engine dies of the first
        # request for log-probabilities where that cannot be.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if not args.steersman_compile:
        args.enforce_eager = True
    if args.dtype == "auto" and torch.backends.cpu.get_cpu_capability() == _WITHOUT_BFLOAT16:
        args.dtype = "float32"
    if args.enable_lora:
        # There, whoever names no adapter gets that of the last slot: keep it empty.
        args.max_loras = (args.max_loras or 1) + 1
    if _is_alone(args):
        # vLLM runs even a single worker in a process of its own, to set OpenMP's environment before torch
        # reads it, and its engine waits for that worker by spinning on a core. The engine's process is a new
        # one too, so the environment can be set here. By its short name vLLM would not take the executor.
        args.distributed_executor_backend = IN_ENGINE
        if envs.VLLM_CPU_OMP_THREADS_BIND == "auto":
            os.environ.setdefault("OMP_NUM_THREADS", str(_threads()))


def _is_alone(args: Namespace) -> bool:
    """One worker, and nobody asked for another layout or for certain cores.

    On several NUMA nodes binding threads is worth more than a core: they keep vLLM's layout, which binds.
    """
    sizes = (
        args.tensor_parallel_size,
        args.pipeline_parallel_size,
        args.prefill_context_parallel_size,
        args.data_parallel_size,
    )
    return (
        args.distributed_executor_backend is None
        and set(sizes) == {1}
        and args.kv_transfer_config is None
        and envs.VLLM_CPU_OMP_THREADS_BIND in {"auto", "nobind"}
        and len(get_visible_memory_node()) == 1
    )


def _threads() -> int:
    """One a physical core, but for those reserved: one for the API server, unless vLLM's own variable says.

    With a thread on every core the engine is faster alone, and many times slower beside anything else that
    runs: each of its parallel regions, hundreds a step, waits for the thread that has lost its core.
    """
    cores = len({cpu.physical_core for cpu in get_allowed_cpu_list()})
    reserved = envs.VLLM_CPU_NUM_OF_RESERVED_CPU
    return max(cores - (1 if reserved is None else reserved), 1)
