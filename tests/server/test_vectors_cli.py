"""`steersman vectors`, offline on the database."""

import argparse
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from server import vectors_cli
from server.database import Database
from server.vectors import NewVector, Vectors
from steering.files import Format, read_vector, write_vector
from steering.vector import Layer, Probe, SteeringVector

ROW = np.array([1, 2, 3], np.float32)
VECTOR = SteeringVector.of({3: ROW, 8: ROW, 9: ROW, 10: ROW})


@pytest.fixture
def steersman(database_url, capsysbinary):
    """Run `steersman vectors …` in this process: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    vectors_cli.add_parser(parser.add_subparsers())

    def run(*arguments):
        words = ["vectors", "--steersman-database-url", database_url, *map(str, arguments)]
        status = vectors_cli.run(parser.parse_args(words))
        captured = capsysbinary.readouterr()
        return status, captured.out, captured.err.decode()

    return run


@pytest.fixture
def stored(steersman, tmp_path):
    """Import VECTOR from a file and return its id."""

    def store(*flags, format=Format.JSON, metadata=None):
        path = tmp_path / "my vector.file"
        path.write_bytes(write_vector(VECTOR, format, metadata))
        status, out, err = steersman("import", path, *flags)
        assert status == 0, err
        return out.decode().strip()

    return store


def listed(steersman):
    return json.loads(steersman("list", "--json")[1])


def test_a_vector_is_imported_and_listed(steersman, stored):
    """The import prints the id alone; the list names the file, its layers in short, and any model."""
    assert steersman("list")[1].decode() == "No vectors yet: `steersman vectors import FILE` stores one.\n"
    vector_id = stored()
    assert re.fullmatch(r"[0-9a-f-]{36}", vector_id)
    header, row = steersman("list")[1].decode().splitlines()
    assert header.split() == ["ID", "NAME", "METHOD", "MODEL", "WIDTH", "LAYERS", "CREATED", "OWNER"]
    assert re.split(r"\s{2,}", row)[:6] == [vector_id, "my vector.file"[:9], "upload", "any", "3", "3,8-10"]
    [item] = listed(steersman)
    assert (item["id"], item["model_fingerprint"], item["digest"]) == (vector_id, None, VECTOR.digest)


@pytest.mark.parametrize("format", Format)
def test_an_export_is_the_file_that_was_imported(steersman, stored, tmp_path, format):
    """Any format goes in and out, to a file and to standard output, with its metadata."""
    vector_id = stored("--name", "n", format=format)
    status, out, _ = steersman("export", vector_id, "--format", format)
    assert status == 0
    file = read_vector(out)
    assert (file.format, file.vector.digest) == (format, VECTOR.digest)
    assert file.metadata.get("name") == (None if format is Format.JSON else "n")
    path = tmp_path / "out"
    assert steersman("export", vector_id, "--format", format, "-o", path)[:2] == (0, b"")
    assert path.read_bytes() == out


def test_flags_win_over_the_file(steersman, stored):
    """What the command line says of a vector replaces what its file says, which replaces the defaults."""
    metadata = {"name": "old", "label": "kept", "model_name": "org/old", "method": "caa", "scale": None}
    flags = ("--name", "new", "--model-name", "org/new", "--model-fingerprint", "f" * 64, "--category", "c")
    stored(*flags, format=Format.GGUF, metadata=metadata)
    [item] = listed(steersman)
    assert (item["name"], item["label"], item["category"]) == ("new", "kept", "c")
    assert (item["model_name"], item["model_fingerprint"]) == ("org/new", "f" * 64)
    assert (item["method"], item["scale"]) == ("caa", None)


def test_standard_input_is_a_file_too(steersman, monkeypatch):
    """`import -` reads a vector from standard input, which has no name; `--source` moves its layers."""
    data = io.BytesIO(write_vector(VECTOR, Format.JSON))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert steersman("import", "-", "--source", "resid_pre")[0] == 0
    [item] = listed(steersman)
    assert (item["name"], item["layers"]) == (None, [2, 7, 8, 9])


def test_vectors_are_deleted(steersman, stored):
    """Deleting counts what it deleted; ids that are not there are named, with status 1."""
    one, two, three = stored(), stored(), stored()
    assert steersman("delete", one)[:2] == (0, b"Deleted 1 of 1.\n")
    status, out, err = steersman("delete", one, two, "nothing")
    assert (status, out) == (1, b"Deleted 1 of 3.\n")
    assert f"There is no steering vector {one}, nothing." in err
    assert [item["id"] for item in listed(steersman)] == [three]


async def test_an_export_says_what_is_missing(steersman, stored, database_url):
    """A gated vector as JSON keeps its directions, and standard error names the rest."""
    import asyncio

    database = Database(database_url)
    await asyncio.to_thread(database.migrate)
    gated = SteeringVector({3: Layer(ROW, Probe(ROW, 0.0, 1.0))})
    vector_id = await Vectors(database).add(NewVector(None, gated, "steering-perceptrons"))
    await database.close()
    status, out, err = await asyncio.to_thread(steersman, "export", vector_id)
    assert (status, json.loads(out)) == (0, {"3": [1.0, 2.0, 3.0]})
    assert "directions alone: probe" in err
    _, out, err = await asyncio.to_thread(steersman, "export", vector_id, "--format", "safetensors")
    assert (read_vector(out).vector.digest, err) == (gated.digest, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("import", "/nowhere/at/all.json"), "No such file"),
        (("import", "FILE", "--account", "nobody"), "no account 'nobody'"),
        (("import", "FILE", "--name", "x" * 201), "at most 200 characters"),
        (("import", "BAD"), "layer 1: the direction is zero"),
        (("export", "nothing"), "no steering vector 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_said(steersman, tmp_path, arguments, says):
    """A fault is a message on standard error and status 1, and nothing is stored."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(write_vector(VECTOR, Format.JSON))
    bad.write_text('{"1": [0]}')
    paths = {"FILE": str(good), "BAD": str(bad)}
    status, out, err = steersman(*(paths.get(word, word) for word in arguments))
    assert (status, out) == (1, b"")
    assert says in err
    assert listed(steersman) == []


def test_a_database_that_does_not_answer(capsys):
    """An unknown or unreachable database is one line on standard error and status 1."""
    for url, says in (("postgresql://127.0.0.1:1/x", "does not answer"), ("mysql://h/x", "Unknown database")):
        args = argparse.Namespace(vectors_command="list", json=False, steersman_database_url=url)
        assert vectors_cli.run(args) == 1
        out, err = capsys.readouterr()
        assert (out, says in err) == ("", True)


@pytest.mark.parametrize(
    ("layers", "text"),
    [((1,), "1"), ((1, 2), "1-2"), ((0, 2, 3, 4, 9), "0,2-4,9"), ((), "")],
)
def test_neighbouring_layers_are_a_range(layers, text):
    """A list of layers is written short."""
    assert vectors_cli._layers(layers) == text
