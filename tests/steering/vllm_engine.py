"""An engine in a process of its own, asked over its standard streams: one JSON line each way.

Within the process vLLM runs without further ones, so that starting another engine takes three seconds.
"""

import gc
import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = "steering.vllm_worker.SteeringWorker"
_ENVIRON = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
_OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "worker_cls": WORKER,
    "gpu_memory_utilization": 0.3,
    "max_model_len": 512,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 32,
    "enable_chunked_prefill": True,
    "block_size": 32,
    "skip_tokenizer_init": True,
    "max_logprobs": 1000,
    "additional_config": {"steersman_steering": {"schema": 1, "rows": 512}},
}


class EngineError(Exception):
    """The engine's own error, as text."""


class EngineProcess:
    """At most one engine at a time lives in it."""

    def __init__(self, folder: Path) -> None:
        """Log and caches go to `folder`."""
        log = folder / "engine.log"
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=inherited | _ENVIRON | {"VLLM_CACHE_ROOT": str(folder / "cache")},
                cwd=ROOT,
                text=True,
            )
        self.log = log
        self.running: dict[str, object] | None = None

    def ask(self, name, /, **arguments):
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(f"the process ended:\n{self.log.read_text()[-6000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["result"]

    def start(self, model, **options):
        """An engine with these options unless it runs already; the one before it stops."""
        wanted = _OPTIONS | options | {"model": str(model)}
        if self.running != wanted:
            self.running = None
            self.ask("start", options=wanted)
            self.running = wanted

    def generate(self, requests):
        """Each request is as `_Engine.params` reads it; a result per request, in order."""
        return self.ask("generate", requests=requests)

    def rpc(self, method, *arguments):
        """What each rank answers to a call of its worker."""
        return self.ask("rpc", method=method, arguments=[_out(value) for value in arguments])

    def close(self):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _out(value):
    """As JSON can hold it."""
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _in(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) and "hex" in value else value


class _Engine:
    def __init__(self) -> None:
        self.llm = None

    def start(self, options):
        from vllm import LLM
        from vllm.platforms import current_platform

        self.stop()
        _inspected(options["model"])
        # each worker of a tensor-parallel engine would take all cores, and wait for the other's
        os.environ["OMP_NUM_THREADS"] = "1" if options.get("tensor_parallel_size") else ""
        if not os.environ["OMP_NUM_THREADS"]:
            del os.environ["OMP_NUM_THREADS"]
        self.llm = LLM(**options)
        # holds for the process; made again it would trip over numba, which n-gram drafts import
        type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)

    def stop(self):
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            gc.collect()
            cleanup_dist_env_and_memory()

    def params(self, request):
        from vllm import SamplingParams

        options = {
            "max_tokens": 8,
            "temperature": 0.0,
            "logprobs": 0,
            "ignore_eos": True,
            "detokenize": False,
            **request.get("params", {}),
        }
        return SamplingParams(**options, extra_args=request.get("extra_args"))

    def prompt(self, request):
        prompt = {"prompt_token_ids": request["prompt"]}
        if request.get("cache_salt"):
            prompt["cache_salt"] = request["cache_salt"]
        return prompt

    def generate(self, requests):
        from vllm.lora.request import LoRARequest

        prompts = [self.prompt(request) for request in requests]
        params = [self.params(request) for request in requests]
        lora = [LoRARequest("adapter", 1, r["lora"]) if r.get("lora") else None for r in requests]
        adapters = {"lora_request": lora} if any(lora) else {}
        outputs = self.llm.generate(prompts, params, use_tqdm=False, **adapters)
        return [_result(output) for output in outputs]

    def abort(self, requests, steps):
        """Let requests run for some steps, then abort them; how many had not ended by themselves."""
        engine = self.llm.llm_engine
        for number, request in enumerate(requests):
            engine.add_request(f"abort-{number}", self.prompt(request), self.params(request))
        for _ in range(steps):
            engine.step()
        unfinished = engine.get_num_unfinished_requests()
        engine.abort_request([f"abort-{number}" for number in range(len(requests))])
        return unfinished

    def metric(self, name):
        """A counter of the engine's own; needs `disable_log_stats=False`."""
        return next(metric.value for metric in self.llm.get_metrics() if metric.name == name)

    def graphs(self):
        """How many graphs this process has compiled."""
        from torch._dynamo.utils import counters

        return counters["stats"]["unique_graphs"]

    def rpc(self, method, arguments):
        return self.llm.collective_rpc(method, args=tuple(_in(value) for value in arguments))


def _inspected(model):
    """Spare vLLM the process in which it looks at each new architecture: here it may be loaded at once."""
    from vllm import ModelRegistry

    for name in json.loads((Path(model) / "config.json").read_text())["architectures"]:
        lazy = ModelRegistry.models[name]
        if hasattr(lazy, "module_name"):
            ModelRegistry.register_model(name, lazy.load_model_cls())


def _result(output):
    prompt = output.prompt_logprobs or []
    ids = output.prompt_token_ids
    return {
        "prompt_logprobs": [row[ids[i]].logprob for i, row in enumerate(prompt) if row is not None],
        "cached": output.num_cached_tokens,
        "outputs": [
            {
                "token_ids": list(completion.token_ids),
                "logprobs": [
                    row[token].logprob
                    for token, row in zip(completion.token_ids, completion.logprobs, strict=True)
                ],
                "table": [[row[token].logprob for token in sorted(row)] for row in completion.logprobs],
            }
            for completion in output.outputs
        ],
    }


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints goes to the log
    engine = _Engine()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": getattr(engine, name)(**arguments)}
        except Exception as error:  # noqa: BLE001  # whatever it is, the test is told
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=_out), file=answers, flush=True)
    engine.stop()


if __name__ == "__main__":
    main()
