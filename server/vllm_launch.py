"""`steersman serve`: our flags and vLLM's, defaults that suit this machine, then vLLM's own launch."""

import os
import signal
import sys
from argparse import SUPPRESS, Namespace
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psutil
import uvloop
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import decorate_logs

from server import embedded, json_log, vllm_cpu, vllm_tool_parser
from server.banner import announce
from server.settings import LOG_FORMATS, Settings
from server.store import Store
from steering.spec import DEFAULT_ROWS, additional_config

LOGITS_PROCESSORS = (
    "processors.vllm_logits:SteersmanLogits",
    "processors.vllm_forbidden:SteersmanForbidden",
)
WORKER = "steering.vllm_worker.SteeringWorker"
_TITLE = "Steersman"
_EPILOG = "--help=all lists every flag, --help=GROUP one group, --help=WORD those whose name holds the word."


def serve(argv: list[str]) -> int:
    """Serve until stopped. Returns the exit status: non-zero where the engine died."""
    signal.signal(signal.SIGTERM, _stop_starting)
    args = _parse(argv)
    settings = Settings.read(args)
    _check_logging(args, settings)
    if args.model_tag is None:
        _embedded(args, settings)
    if Path(args.model_tag).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _complete(args, settings)
    _forget_dead_counts()
    parsing = vllm_tool_parser.complete(args)
    validate_parsed_serve_args(args)
    _require_plugin()
    if not args.headless:  # a follower has no routes: its leader alone opens the database
        store = Store(settings.database_url)
        store.migrate()
        announce(args, settings, uvloop.run(_first_key(store)), parsing)
    if _is_single(args):
        args.model, args.api_server_count = args.model_tag, None
        return uvloop.run(_serve_one(args))
    ServeSubcommand.cmd(args)
    return 0


def _check_logging(args: Namespace, settings: Settings) -> None:
    """JSON lines are set up before vLLM is imported, from the command line or the environment alone."""
    if settings.log_format == "json" and args.log_config_file != str(json_log.PATH):
        sys.exit("--log-format json: not beside --log-config-file, nor from the file of --config")


def _embedded(args: Namespace, settings: Settings) -> None:
    """Serve the model that ships: 2 GiB hold the KV cache of some 90,000 tokens."""
    args.model_tag = str(embedded.prepare(settings.home, _say))
    args.served_model_name = args.served_model_name or [embedded.NAME]
    args.chat_template = args.chat_template or str(embedded.CHAT_TEMPLATE)
    if args.tool_strict_level == "auto":
        args.tool_strict_level = "parameter"  # so small a model needs its arguments' schema enforced
    if current_platform.is_cpu() and args.kv_cache_memory_bytes is None:
        args.kv_cache_memory_bytes = 2 * 1024**3


def _parse(argv: list[str]) -> Namespace:
    parser = FlexibleArgumentParser(prog="steersman")
    serve_parser = parser.add_subparsers(dest="subparser", parser_class=_ServeParser).add_parser(
        "serve",
        usage="steersman serve [MODEL] [options]",
        description="Serve MODEL (a Hugging Face id or a local path; default: the embedded "
        f"{embedded.NAME}) over OpenAI's and Axionic's APIs.",
    )
    ours = serve_parser.add_argument_group(_TITLE, "Flags of Steersman's own.")
    for flag, options in _OURS.items():
        ours.add_argument(flag, dest=f"steersman_{flag.strip('-').replace('-', '_')}", **options)
    make_arg_parser(serve_parser)
    serve_parser.epilog = _EPILOG
    serve_parser.set_defaults(**_defaults())
    args: Namespace = parser.parse_args(["serve", *argv])
    configure_logging_from_args(args)
    return args


_OURS: dict[str, dict[str, object]] = {
    "--home": {"metavar": "PATH", "help": "Where the database and the prepared model live (STEERSMAN_HOME)."},
    "--database-url": {
        "metavar": "URL",
        "help": "sqlite+aiosqlite:///… or postgresql://… (STEERSMAN_DATABASE_URL).",
    },
    "--max-body-bytes": {"type": int, "metavar": "N", "help": "Larger request bodies get 413 (16 MiB)."},
    "--constraint-seconds": {
        "type": float,
        "metavar": "S",
        "help": "How long a schema, regex or grammar may take to compile.",
    },
    "--steering-rows": {
        "type": int,
        "metavar": "N",
        "help": "Lines of the engine's vector table, hidden size x 4 bytes each; a vector takes one a layer, "
        "one more for a probe, up to 130 with the latents of asas "
        f"({DEFAULT_ROWS}).",
    },
    "--steering-wait-seconds": {
        "type": float,
        "metavar": "S",
        "help": "How long a request waits for free lines before it gets 503; 0: not at all (30).",
    },
    "--steering-safe-dose": {
        "type": float,
        "metavar": "D",
        "help": "Relative dose above which a response carries a warning (1).",
    },
    "--steering-max-dose": {
        "type": float,
        "metavar": "D",
        "help": "Relative dose above which a request is refused (2).",
    },
    "--behaviors": {
        "metavar": "ID,ID",
        "help": "Ids of behaviors that every request is watched for (STEERSMAN_BEHAVIORS).",
    },
    "--behavior-mode": {
        "metavar": "M",
        "help": "What their drift leads to: monitor (it is told), online (it is corrected; the default).",
    },
    "--observe-requests": {
        "type": int,
        "metavar": "N",
        "help": "How many recent calls are kept for GET /observability/requests, with the beginnings of "
        "their texts; 0: none (10000).",
    },
    "--observe-days": {
        "type": float,
        "metavar": "D",
        "help": "After how many days they are deleted (7).",
    },
    "--interactions": {
        "metavar": "WHICH",
        "help": "Which chat completions are stored: asked (those with `store: true`; the default), all (but "
        "those with `store: false`), none.",
    },
    "--interaction-rows": {
        "type": int,
        "metavar": "N",
        "help": "How many of them are kept, of all accounts together (100000).",
    },
    "--interaction-days": {
        "type": float,
        "metavar": "D",
        "help": "After how many days they are deleted (30).",
    },
    "--redact": {
        "metavar": "FILE",
        "help": "Regular expressions, one a line: what they match is replaced in every text of requests and "
        "answers before it is stored.",
    },
    "--accounts": {
        "nargs": "?",
        "const": "open",
        "metavar": "WHO",
        "help": "Accounts that log in with a password: open (whoever signs up; without a word too), closed "
        "(those of `steersman accounts add`), off (the default) (STEERSMAN_ACCOUNTS).",
    },
    "--adaptive-seconds": {
        "type": float,
        "metavar": "S",
        "help": "How long an answer under /api/v1, or the start of one that is streamed, may take before "
        "there is a 408 instead (60); 0: as long as it takes.",
    },
    "--embeddings-url": {
        "metavar": "URL",
        "help": "The server that embeds for /v1/embeddings, by OpenAI's API: http://host:8000; its key is in "
        "STEERSMAN_EMBEDDINGS_KEY (STEERSMAN_EMBEDDINGS_URL).",
    },
    "--embeddings-model": {
        "metavar": "NAME",
        "help": "Its model, where it does not list it under /v1/models.",
    },
    "--embeddings-seconds": {
        "type": float,
        "metavar": "S",
        "help": "How long it may take before a request gets 503 (60).",
    },
    "--embeddings-at-once": {
        "type": int,
        "metavar": "N",
        "help": "How many requests it is sent at a time; four times as many wait (64).",
    },
    "--log-format": {
        "choices": LOG_FORMATS,
        "help": "What each line of the log is, the engine's included: text (vLLM's own; the default) or a "
        "JSON object (STEERSMAN_LOG_FORMAT).",
    },
    "--behind-vllm-router": {
        "action": "store_true",
        "help": "Accept the fields that vllm-router adds to bodies, as long as they have the values it adds.",
    },
    "--metric-tenants": {
        "metavar": "KEY,KEY",
        "help": "Keys or ids of the projects that /metrics counts by name, at most 50; without, the 50 made "
        "first count by digests of their ids. All others count together (STEERSMAN_METRIC_TENANTS).",
    },
    "--requests-per-minute": {
        "type": int,
        "metavar": "N",
        "help": "How many requests a key may make in a minute that has no limit of its own; 0: no limit, the "
        "default (STEERSMAN_REQUESTS_PER_MINUTE).",
    },
    "--tokens-per-minute": {
        "type": int,
        "metavar": "N",
        "help": "The same for tokens, of prompts and answers together (STEERSMAN_TOKENS_PER_MINUTE).",
    },
    "--concurrent-requests": {
        "type": int,
        "metavar": "N",
        "help": "The same for requests that run at once (STEERSMAN_CONCURRENT_REQUESTS).",
    },
    "--max-queue": {
        "type": int,
        "metavar": "N",
        "help": "Requests in the engine, waiting or running, beyond which new ones get 503; 0: no limit, the "
        "default. It is --max-num-queued-reqs (STEERSMAN_MAX_QUEUE).",
    },
    "--max-queue-seconds": {
        "type": float,
        "metavar": "S",
        "help": "How long a request may wait for its first token before it gets 503; 0: as long as it takes, "
        "the default (STEERSMAN_MAX_QUEUE_SECONDS).",
    },
    "--disable-steering": {"action": "store_true", "help": "Run vLLM's own worker."},
    "--compile": {
        "action": "store_true",
        "help": "On a CPU: torch.compile the model. 1.2 to 1.5 times the throughput at few concurrent "
        "requests, for one to two minutes more at the start. (GPUs always compile unless --enforce-eager.)",
    },
}


class _ServeParser(FlexibleArgumentParser):
    """Its help spells out our flags first; vLLM's, some three hundred, follow by group."""

    usage: str | None
    description: str | None

    def format_help(self) -> str:
        if self._search_keyword is not None:
            return str(super().format_help())
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section(_TITLE)
        (ours,) = (group for group in self._action_groups if group.title == _TITLE)
        formatter.add_arguments(ours._group_actions)  # noqa: SLF001  # as argparse's own format_help does
        formatter.end_section()
        usage, self.usage = self.usage, SUPPRESS
        description, self.description = self.description, "vLLM's own flags, by group:"
        try:
            return f"{formatter.format_help()}\n{super().format_help()}"
        finally:
            self.usage, self.description = usage, description


def _defaults() -> dict[str, object]:
    """Where ours differ from vLLM's; a flag still wins."""
    # A constrained beam takes its candidates from the likeliest tokens: the more it sees, the fewer requests.
    defaults: dict[str, object] = {"shutdown_timeout": 30, "max_logprobs": 256}
    return defaults | vllm_cpu.defaults() if current_platform.is_cpu() else defaults


def _complete(args: Namespace, settings: Settings) -> None:
    """What follows from the flags."""
    _complete_queue(args, settings)
    if current_platform.is_cpu():
        vllm_cpu.complete(args)
    _complete_traces(args)
    # vLLM's engine keeps the backend of its first constrained request for life, so "auto" must not choose.
    outputs = args.structured_outputs_config
    if outputs.backend == "auto":
        outputs.backend = "xgrammar"
        # Small models fill JSON with white space until max_tokens; compact JSON leaves them no room to.
        outputs.disable_any_whitespace = True
    if args.worker_cls == "auto" and not args.steersman_disable_steering:
        args.worker_cls = WORKER
        # Of its hash vLLM's compile cache makes its key, and the worker's class is not in it otherwise.
        args.additional_config = {
            **(args.additional_config or {}),
            **additional_config(settings.steering_rows),
        }
        if args.speculative_config is not None:
            if args.async_scheduling:
                sys.exit(
                    "--async-scheduling beside --speculative-config: not with steering (--disable-steering)"
                )
            args.async_scheduling = False  # else the host counts drafts as accepted before it knows
    # vLLM's V1 sampler refuses custom logits processors beside speculative decoding.
    if args.speculative_config is None:
        args.logits_processors = [*(args.logits_processors or []), *LOGITS_PROCESSORS]


def _complete_queue(args: Namespace, settings: Settings) -> None:
    if settings.max_queue:
        if args.max_num_queued_reqs not in (None, settings.max_queue):
            sys.exit("--max-queue and --max-num-queued-reqs are the same: give one of them")
        args.max_num_queued_reqs = settings.max_queue


def _complete_traces(args: Namespace) -> None:
    if args.otlp_traces_endpoint:
        if args.disable_log_stats:
            sys.exit("--otlp-traces-endpoint beside --disable-log-stats: vLLM's spans need the statistics")
        if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            os.environ.setdefault("OTEL_SERVICE_NAME", "steersman")


def _forget_dead_counts() -> None:
    """What processes of an earlier run counted, where PROMETHEUS_MULTIPROC_DIR is set and so outlives them:
    their gauges would count as long as the files are there."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for file in Path(folder).glob("*_*.db") if folder else ():
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            file.unlink(missing_ok=True)


def _require_plugin() -> None:
    """vLLM logs and skips a plugin that fails to load, and would then serve without authentication."""
    (entry,) = entry_points(group="vllm.endpoint_plugins", name="steersman")
    entry.load()()
    if "steersman" not in os.environ["VLLM_PLUGINS"].split(","):
        raise RuntimeError("VLLM_PLUGINS must name steersman")


async def _first_key(store: Store) -> str | None:
    try:
        return await store.first_key()
    finally:
        await store.close()


def _is_single(args: Namespace) -> bool:
    """One API server in this process, as vLLM would decide too."""
    several = (args.api_server_count or 1) > 1 or args.data_parallel_size > 1
    return not (several or args.headless or args.grpc or args.data_parallel_rank is not None)


async def _serve_one(args: Namespace) -> int:
    """vLLM's `run_server`, which forgets whether the engine died."""
    decorate_logs("APIServer", skip_if_decorated=True)
    address, listener = setup_server(args, reuse_port=False)
    async with build_async_engine_client(args) as engine:
        stops = _noting_stops(engine)
        # By then the engine has drained: a connection still open waits for tokens that nobody makes.
        shutdown = await build_and_serve(engine, address, listener, args, timeout_graceful_shutdown=2)
        died = bool(engine.errored and not engine.is_running) and not stops
    try:
        await shutdown
    finally:
        listener.close()
    return 1 if died else 0


def _noting_stops(engine: Any) -> list[float | None]:
    """The timeouts with which a live engine was told to stop, filled as it is: afterwards it looks dead."""
    stops: list[float | None] = []
    shutdown = engine.shutdown

    def noting(timeout: float | None = None) -> None:
        if not engine.errored:
            stops.append(timeout)
        shutdown(timeout=timeout)

    engine.shutdown = noting
    return stops


def _stop_starting(*_: object) -> None:
    """Leave at once, with every process begun: nothing is accepted yet.

    Not by an exception: pyzmq, in which vLLM waits for its engine, swallows it.
    """
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    _say("Steersman was stopped while it started.")
    json_log.finish()
    os._exit(128 + signal.SIGTERM)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
