"""vLLM's own load generator, kept running: a line of JSON arguments in, a line of JSON results out."""

import argparse
import contextlib
import json
import sys

from vllm.benchmarks.serve import add_cli_args, main


def serve() -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # it reports to people as it goes
            result = main(parser.parse_args(json.loads(line)))
        kept = {name: result[name] for name in ("completed", "output_throughput", "median_ttft_ms")}
        print(json.dumps(kept), flush=True)


if __name__ == "__main__":
    serve()
