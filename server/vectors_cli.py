"""`steersman vectors`: list, import, export and delete steering vectors in the database of the settings.

The commands that need a running server are in `vectors_remote`.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server import vectors_remote
from server.columns import columns
from server.store import DEFAULT_ACCOUNT, Store
from server.store_command import add_place, run_on_store
from server.vector_wire import FileMetadata, VectorDetail
from server.vectors import VectorRecord, Vectors
from steering import files
from steering.files import Format, Point
from steering.vector import SteeringVector

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `vectors` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("vectors", help="steering vectors: stored ones, and how well they work")
    add_place(parser)
    commands = parser.add_subparsers(dest="vectors_command", required=True)
    listing = commands.add_parser("list", help="all vectors")
    listing.add_argument("--json", action="store_true", help="as a JSON list")
    importing = commands.add_parser("import", help="store a vector from a file and print its id")
    importing.add_argument("file", metavar="FILE", help="JSON, safetensors or GGUF; - reads standard input")
    importing.add_argument("--name")
    importing.add_argument("--label")
    importing.add_argument("--category")
    importing.add_argument("--model-name", help="the model that it was made for")
    importing.add_argument(
        "--model-fingerprint", help="its weights; without one it fits any model of its width"
    )
    importing.add_argument("--account", default=DEFAULT_ACCOUNT, help="whose it is; default: the first one")
    importing.add_argument(
        "--source",
        choices=list(Point),
        default=Point.RESID_POST,
        help="where in its block a layer number means",
    )
    exporting = commands.add_parser("export", help="write a vector as a file")
    exporting.add_argument("id", metavar="ID")
    exporting.add_argument("--format", choices=list(Format), default=Format.JSON)
    exporting.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    deleting = commands.add_parser("delete", help="delete vectors")
    deleting.add_argument("ids", metavar="ID", nargs="+")
    vectors_remote.add_parsers(commands)
    return parser


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    if args.vectors_command in vectors_remote.COMMANDS:
        return vectors_remote.run(args)
    return run_on_store("vectors", args, _act)


async def _act(store: Store, args: Namespace) -> None:
    vectors = Vectors(store.database)
    match args.vectors_command:
        case "list":
            records = await vectors.list(None)
            sys.stdout.write(_as_json(records) if args.json else _as_table(records))
        case "import":
            await _import(vectors, args)
        case "export":
            await _export(vectors, args)
        case "delete":
            await _delete(vectors, args.ids)


async def _import(vectors: Vectors, args: Namespace) -> None:
    file = files.read_vector(_content(args.file), source=Point(args.source))
    said = FileMetadata.read(file)
    fields = ("name", "label", "category", "model_name", "model_fingerprint")
    given = {name: value for name in fields if (value := getattr(args, name)) is not None}
    if said.name is None and args.file != "-":
        given = {"name": Path(args.file).stem, **given}
    described = FileMetadata.model_validate(said.model_dump() | given)
    vector_id = await vectors.add(described.new_vector(args.account, file.vector))
    # The id alone on standard output, so that `ID=$(steersman vectors import FILE)` works.
    sys.stdout.write(f"{vector_id}\n")
    layers = _layers(sorted(file.vector.layers))
    sys.stderr.write(f"Imported a {file.format} file: {file.vector.width} wide, layers {layers}.\n")


async def _export(vectors: Vectors, args: Namespace) -> None:
    record = await vectors.get(None, args.id)
    vector = SteeringVector.from_blob(await vectors.blob(record.id))
    content = files.write_vector(vector, Format(args.format), FileMetadata.of(record).plain)
    _write(content, args.output)
    missing = files.omitted(vector, Format(args.format))
    if missing:
        sys.stderr.write(f"Not in the file, which holds directions alone: {', '.join(missing)}.\n")


async def _delete(vectors: Vectors, ids: Sequence[str]) -> None:
    gone = await vectors.delete_many(None, ids)
    sys.stdout.write(f"Deleted {len(gone)} of {len(set(ids))}.\n")
    missing = [vector_id for vector_id in dict.fromkeys(ids) if vector_id not in gone]
    if missing:
        raise ValueError(f"There is no steering vector {', '.join(missing)}.")


def _content(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def _write(content: bytes, path: str | None) -> None:
    if path is not None:
        Path(path).write_bytes(content)
        return
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _as_json(records: Sequence[VectorRecord]) -> str:
    items = [
        {"account_id": record.account_id, **VectorDetail.of(record).model_dump(mode="json")}
        for record in records
    ]
    return json.dumps(items, indent=2, ensure_ascii=False) + "\n"


def _as_table(records: Sequence[VectorRecord]) -> str:
    if not records:
        return "No vectors yet: `steersman vectors import FILE` stores one.\n"
    rows = [("ID", "NAME", "METHOD", "MODEL", "WIDTH", "LAYERS", "CREATED", "OWNER")]
    rows += [
        (
            record.id,
            record.name or record.preset or "-",
            record.method,
            record.model_name or "any",
            str(record.width),
            _layers(record.layers),
            f"{record.created_at:%Y-%m-%d %H:%M}Z",
            record.account_id or "all",
        )
        for record in records
    ]
    return columns(rows)


def _layers(layers: Sequence[int]) -> str:
    """`3,8-11`: runs of neighbours as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
