"""vLLM's own load generator as a command: `python tests/bench/vllm_load.py --base-url … --model …`."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
