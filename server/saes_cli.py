"""`steersman sae`: list, add, train, evaluate and remove sparse autoencoders."""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Self

from server.corpus import DESCRIPTION, KINDS

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DEFAULT_URL = "http://127.0.0.1:8000"
_INTERRUPTED = 130


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `sae` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("sae", help="sparse autoencoders of the model's states")
    parser.add_argument(
        "--home", dest="steersman_home", metavar="DIR", help="where they lie (STEERSMAN_HOME)"
    )
    commands = parser.add_subparsers(dest="sae_command", required=True)
    listing = commands.add_parser("list", help="all autoencoders, and how good they are")
    listing.add_argument("--json", action="store_true", help="as JSON")
    removing = commands.add_parser("remove", help="delete autoencoders")
    removing.add_argument("names", metavar="NAME", nargs="+")
    adding = commands.add_parser(
        "add",
        help="check, measure and store one from a folder or the Hugging Face Hub",
        description="Formats: SAELens (cfg.json, sae_weights.safetensors), sparsify (cfg.json, "
        "sae.safetensors), Gemma Scope (params.npz); never pickles.",
    )
    adding.add_argument("source", metavar="PATH_OR_ID", help="a local folder, or a repository of the Hub")
    adding.add_argument("--revision", help="of the repository: a branch, tag or commit")
    adding.add_argument("--subfolder", help="of the repository, where it holds several autoencoders")
    place = adding.add_mutually_exclusive_group()
    place.add_argument("--layer", type=_count(0), help="it reads what leaves this block; default: as it says")
    place.add_argument("--hook", help="where it reads, as 'blocks.7.hook_resid_post'; default: as it says")
    adding.add_argument("--model-name", help="the model that it was trained on; default: as it says")
    adding.add_argument(
        "--norm-factor", type=float, help="what its training multiplied states by, where it does not say"
    )
    adding.add_argument(
        "--any-name", action="store_true", help="take one of a close relative, as of the base model"
    )
    training = commands.add_parser(
        "train",
        help="train one on the running server's states",
        description="Captures states of a corpus from the server and trains a TopK autoencoder on them, "
        "which is then measured on held-out texts and stored. Interrupted, the same command goes on.",
    )
    training.add_argument("--layer", type=_count(0), help="default: two thirds of the depth")
    training.add_argument("--latents", type=_count(2), default=2048, help="default: 2048")
    training.add_argument("--active", type=_count(1), default=32, help="latents that explain one state; 32")
    training.add_argument(
        "--tokens", type=_count(1), default=150_000, help="states to learn from, at most; default: 150000"
    )
    training.add_argument(
        "--minutes",
        type=_count(1),
        help="learn from no more states than the server captures in so long, as its first answer shows",
    )
    training.add_argument("--passes", type=_count(1), default=1, help="times that each is learned from; 1")
    training.add_argument("--restart", action="store_true", help="forget what an interrupted run has learned")
    trying = commands.add_parser("evaluate", help="measure a stored one again, maybe on other texts")
    trying.add_argument("name", metavar="NAME")
    for each in (adding, training):
        each.add_argument("--name", help="what it is called here; default: after its source")
        each.add_argument("--replace", action="store_true", help="replace the one of that name")
    for each in (adding, training, trying):
        _add_server(each)
    return parser


def _add_server(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--corpus",
        metavar="PATH",
        help=f"a text file, or a folder of {', '.join(KINDS)} (.jsonl: lines with text, or with prompt and "
        f"answer), of which every 16th passage is held out; default: {DESCRIPTION}",
    )
    parser.add_argument("--url", default=os.environ.get("STEERSMAN_URL", _DEFAULT_URL), help="of the server")
    parser.add_argument("--key", default=os.environ.get("STEERSMAN_KEY"), help="STEERSMAN_KEY")
    parser.add_argument(
        "--serve",
        nargs="?",
        const="",
        metavar="MODEL",
        help="where no server answers, start one for this command; with a MODEL, start one anyhow",
    )


def _count(least: int) -> type[int]:
    """For argparse, which names the type in its messages."""

    class Number(int):
        def __new__(cls, text: str) -> Self:
            number = super().__new__(cls, text)
            if number < least:
                raise ArgumentTypeError(f"at least {least}, not {text}")
            return number

    Number.__name__ = "whole number"
    return Number


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why, 130 interrupted."""
    # They load torch, which other commands need not wait for.
    from server.errors import SteersmanError  # noqa: PLC0415
    from server.remote import RemoteError  # noqa: PLC0415
    from server.sae_commands import COMMANDS  # noqa: PLC0415
    from server.sae_hub import HubError  # noqa: PLC0415

    try:
        COMMANDS[args.sae_command](args)
    except KeyboardInterrupt:
        sys.stderr.write("\nsteersman sae: interrupted\n")
        return _INTERRUPTED
    except (SteersmanError, RemoteError, HubError, ValueError, OSError) as error:
        sys.stderr.write(f"steersman sae: {error}\n")
        return 1
    return 0
