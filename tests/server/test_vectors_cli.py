"""`steersman vectors`: offline on the database, and against a server that answers by arithmetic."""

import argparse
import io
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from server import vectors_cli, vectors_remote
from server.database import Database
from server.dose_response import Curve, as_long_as, random_like, spearman, summary
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


KEY = "ax_" + "0" * 48
FLAT = {"1": [3.0, 0.0, 0.0], "2": [0.0, 4.0, 0.0]}


class Remote:
    """A running server: a vector's margins follow its first number; the third pair's run the other way."""

    def __init__(self):
        self.seen, self.trained, self.deleted = [], [], []
        self.refusal = None

    def answer(self, method, path, body):
        self.seen.append((method, path, body))
        if self.refusal:
            return self.refusal
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["presets"]:
                floors = {
                    "brevity": 0.35,
                    "json_compliance": None,
                    "domain_specific": 0.4,
                    "tone_control": 0.25,
                }
                return 200, [{"name": name, "minimum_strength": floor} for name, floor in floors.items()]
            case "POST", ["presets", name]:
                assert body is None
                return 200, {"id": f"id-{name}", "layers": [10, 11], "doses": {"10": 0.2, "11": 0.15}}
            case "GET", ["vectors", "v"]:
                made = {"name": "formal", "label": None, "method": "caa", "model_name": "org/model"}
                return 200, {**made, "layers": [1, 2]}
            case "GET", ["vectors", "v", "download"]:
                return 200, FLAT
            case "GET", ["vectors", "shuffled", "download"]:
                return 200, {"1": [0.0, 0.5, 0.0], "2": [0.0, 0.0, 9.0]}
            case "POST", ["generate"]:
                self.trained.append(body)
                return 200, {"steering_vector_id": "shuffled"}
            case "DELETE", ["vectors", name]:
                self.deleted.append(name)
                return 200, {"id": name}
            case "POST", ["evaluate", "margins"]:
                return 200, {"results": [self.measured(body, strength) for strength in body["strengths"]]}
        return 404, {"detail": f"no {path}"}

    def measured(self, body, strength):
        unit = body["vector"]["1"][0] / 30 if "vector" in body else 1.0
        slopes = [-unit if number == 2 else unit * (1 + number / 10) for number in range(len(body["pairs"]))]
        neutral = 3 + strength**2 / 10 if body["neutral"] else None
        margins = [0.5 + strength * slope for slope in slopes]
        return {"margins": margins, "neutral": neutral, "relative_dose": abs(strength) / 4}


@pytest.fixture
def remote():
    """A `Remote` on a port of its own; its `url` is where."""
    answering = Remote()

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            assert self.headers["x-api-key"] == KEY
            assert not sent or self.headers["content-type"] == "application/json"
            status, body = answering.answer(self.command, self.path, json.loads(sent) if sent else None)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = respond

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answering.url = f"http://127.0.0.1:{server.server_port}"
        yield answering
        server.shutdown()


@pytest.fixture
def asking(remote, capsys):
    """Run `steersman vectors …` against `remote`: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    vectors_cli.add_parser(parser.add_subparsers())

    def run(*words, key=KEY):
        args = parser.parse_args(["vectors", *map(str, words), "--url", remote.url, "--key", key])
        status = vectors_cli.run(args)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def pairs(tmp_path):
    """Twelve pairs in a file."""

    def write(name="held.jsonl", first=0):
        path = tmp_path / name
        lines = [
            {"prompt": f"p{number}", "positive_answer": f"a{number}", "negative_answer": f"b{number}"}
            for number in range(first, first + 12)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_presets_are_built_ahead(asking, remote):
    """Without names all presets are made that need no examples; a table tells ids, layers and doses."""
    status, out, _ = asking("build-presets")
    assert status == 0
    header, *rows = [line.split() for line in out.splitlines()]
    assert header == ["PRESET", "ID", "LAYERS", "DOSE", "SECONDS"]
    assert [row[:4] for row in rows] == [
        ["brevity", "id-brevity", "10,11", "0.20"],
        ["tone_control", "id-tone_control", "10,11", "0.20"],
    ]
    assert asking("build-presets", "tone_control")[1].count("id-") == 1


def test_an_evaluation_is_a_table(asking, remote, pairs):
    """Each strength has dose, margin, shift and difference to the controls with intervals; 0 is added."""
    status, out, err = asking("evaluate", "v", "--pairs", pairs(), "--strengths", "-2,1", "--random", "2")
    assert status == 0
    title, _, header, *rows = out.splitlines()
    assert title == "formal (caa), 12 held-out pairs"
    assert re.split(r"\s{2,}", header)[3:] == [
        "SHIFT [95 %]",
        "MINUS RANDOM [95 %]",
        "CONTRARY",
        "NEUTRAL COST",
    ]
    assert [row.split()[:3] for row in rows[:3]] == [
        ["-2", "0.50", "-2.233"],
        ["0", "0.00", "+0.500"],
        ["1", "0.25", "+1.867"],
    ]
    assert [row.split()[-2:] for row in rows[:3]] == [["8%", "+0.400"], ["-", "+0.000"], ["8%", "+0.100"]]
    assert "the margin of 8% of the pairs falls" in out
    assert "strength and mean margin +1.00" in out
    assert "Beats random at strengths -2, 1 (" in out
    assert "the vector at strength -2 …" in err


def test_controls_are_as_long_as_the_vector(asking, remote, pairs):
    """Random directions and the shuffled vector have the vector's layers and lengths, and no neutral text."""
    assert asking("evaluate", "v", "--pairs", pairs(), "--random", 2, "--train", pairs("train", 12))[0] == 0
    measured = [body for method, path, body in remote.seen if path.endswith("margins")]
    controls = [body for body in measured if "vector" in body]
    assert len({json.dumps(body["vector"]) for body in controls}) == 3
    for body in controls:
        lengths = {layer: np.linalg.norm(row) for layer, row in body["vector"].items()}
        assert lengths == pytest.approx({"1": 3, "2": 4}, rel=1e-5)
        assert body["neutral"] is False
    assert len(measured) == 5 + 3 * 4  # the controls do nothing at strength 0


def test_the_shuffled_control_is_trained_and_deleted(asking, remote, pairs):
    """Half of the training pairs are exchanged, the vector has the same layers, and does not stay."""
    out = asking("evaluate", "v", "--pairs", pairs(), "--random", 0, "--train", pairs("train", 12))[1]
    [body] = remote.trained
    assert (body["method"], body["layer_idxs"], body["stream"]) == ("caa", [1, 2], False)
    assert sum(answer.startswith("b") for answer in body["positive_answers"]) == 6
    couples = zip(body["positive_answers"], body["negative_answers"], strict=True)
    assert all({one[0], other[0]} == {"a", "b"} and one[1:] == other[1:] for one, other in couples)
    assert remote.deleted == ["shuffled"]
    assert "MINUS SHUFFLED" in out
    assert "RANDOM" not in out


def test_pairs_of_the_training_are_not_held_out(asking, pairs):
    """Pairs that stand in both files are counted on standard error."""
    err = asking("evaluate", "v", "--pairs", pairs(), "--random", 0, "--train", pairs("train", 6))[2]
    assert "6 of 12 pairs are training pairs too" in err


def test_every_figure_is_in_the_json(asking, pairs, tmp_path):
    """The file has the summary, every margin of vector and controls, and what they were measured on."""
    path = tmp_path / "out.json"
    assert asking("evaluate", "v", "--pairs", pairs(), "--random", 1, "--json", path)[0] == 0
    report = json.loads(path.read_text())
    assert (report["steering_vector_id"], report["pairs"], report["layers"]) == ("v", 12, [1, 2])
    assert report["vector"]["strengths"] == [-2, -1, 0, 1, 2]
    assert np.shape(report["vector"]["margins"]) == (5, 12)
    assert np.shape(report["controls"]["random"][0]["margins"]) == (5, 12)
    assert report["summary"]["points"][4]["against"]["random"]["low"] > 0
    again = tmp_path / "again.json"
    asking("evaluate", "v", "--pairs", pairs(), "--random", 1, "--json", again)
    assert again.read_bytes() == path.read_bytes()


def test_json_on_standard_output_is_alone(asking, pairs):
    """`--json -` prints the figures and no table."""
    out = asking("evaluate", "v", "--pairs", pairs(), "--random", 0, "--json", "-")[1]
    assert json.loads(out)["summary"]["anti_steerable"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(asking, pairs, tmp_path, ending):
    """The picture is written in the format that its name ends with."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"out.{ending}"
    assert asking("evaluate", "v", "--pairs", pairs(), "--random", 1, "--plot", path)[0] == 0
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])


def test_a_plot_that_cannot_be_is_told_first(asking, remote, pairs, monkeypatch):
    """Without matplotlib, or for another format, nothing is measured, and the message says what to do."""
    status, _, err = asking("evaluate", "v", "--pairs", pairs(), "--plot", "x.txt")
    assert (status, ".png, .svg, .pdf" in err) == (1, True)
    monkeypatch.setattr(vectors_remote, "find_spec", lambda name: None)
    status, _, err = asking("evaluate", "v", "--pairs", pairs(), "--plot", "x.png")
    assert (status, "pip install 'steersman[plot]'" in err) == (1, True)
    assert remote.seen == []


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((404, {"detail": "There is no vector."}), "GET /steering/vectors/v: 404 There is no vector."),
        ((422, {"detail": [{"loc": ["body", "pairs", 0], "msg": "too long"}]}), "422 pairs.0: too long"),
        ((502, b"<html>bad gateway"), "502 <html>bad gateway"),
    ],
)
def test_a_refusal_is_said(asking, remote, pairs, refusal, says):
    """What the server refuses is one line on standard error and status 1, whatever its shape."""
    remote.refusal = refusal
    status, out, err = asking("evaluate", "v", "--pairs", pairs())
    assert (status, out) == (1, "")
    assert says in err


def test_a_server_that_does_not_answer(capsys):
    """No server, and a URL of another kind, are one line on standard error and status 1."""
    for url, says in (("http://127.0.0.1:1", "does not answer"), ("file:///etc", "begins with http://")):
        args = argparse.Namespace(vectors_command="build-presets", names=[], url=url, key=None)
        assert vectors_cli.run(args) == 1
        assert says in capsys.readouterr().err


def test_pairs_need_both_answers(asking, tmp_path):
    """A pair without a negative answer is refused by its number before anything is measured."""
    path = tmp_path / "half.jsonl"
    path.write_text('{"prompt": "p", "positive_answer": "a"}\n')
    status, _, err = asking("evaluate", "v", "--pairs", path)
    assert (status, "pair 1 has no negative answer" in err) == (1, True)


def test_remote_commands_touch_no_database(asking, tmp_path, monkeypatch):
    """What runs on another machine's server makes no database here."""
    monkeypatch.setenv("STEERSMAN_HOME", str(tmp_path / "home"))
    assert asking("build-presets")[0] == 0
    assert not (tmp_path / "home").exists()


def curve(*rows):
    return Curve((-1.0, 0.0, 1.0), np.array(rows, np.float64), (1.0, 0.0, 1.0))


def test_an_effect_that_is_noise_beats_nothing():
    """The interval of a shift that random vectors reach as well holds 0, above all with few of them."""
    rng = np.random.default_rng(1)
    flat = np.zeros(40)
    noise = [curve(flat, flat, rng.normal(shift, 0.1, 40)) for shift in (0.3, -0.3, 0.1)]
    found = summary(curve(flat, flat, rng.normal(0.2, 0.1, 40)), {"random": noise})
    top = found.points[2]
    assert top.shift.beats_zero(1)
    assert not top.against["random"].beats_zero(1)
    assert top.against["random"].low < top.against["random"].mean < top.against["random"].high


def test_an_interval_has_its_width():
    """A bootstrap interval of a mean is about 1.96 standard errors to each side."""
    shifts = np.random.default_rng(0).normal(1, 1, 400)
    top = summary(curve(shifts * 0, shifts * 0, shifts), {}).points[2].shift
    assert (top.high - top.low) / 2 == pytest.approx(1.96 * shifts.std() / 20, rel=0.1)
    assert top.mean == pytest.approx(shifts.mean())


def test_contrary_pairs_are_counted_by_the_sign_of_the_strength():
    """Below 0 a pair is contrary whose margin rises; anti-steerable is one whose line falls."""
    found = summary(curve([1, 1, 0, -1], [0, 0, 0, 0], [1, -1, 0, 2]), {})
    assert [point.contrary for point in found.points] == [0.5, None, 0.25]
    assert found.anti_steerable == 0.25


@pytest.mark.parametrize(
    ("x", "y", "rank"),
    [
        ([1, 2, 3], [1, 10, 11], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [5, 5, 5], 0),
        ([1, 2, 3, 4], [1, 2, 2, 3], 0.9486833),
    ],
)
def test_spearman_compares_ranks(x, y, rank):
    """Only the order counts, equal values share a rank, and what never changes has no correlation."""
    assert spearman(np.array(x, float), np.array(y, float)) == pytest.approx(rank)


def test_random_directions_keep_the_lengths():
    """A control is as long as the vector at each of its layers, and another one each time."""
    rng = np.random.default_rng(0)
    one, other = random_like(VECTOR, rng), random_like(VECTOR, rng)
    assert one.norms == pytest.approx(VECTOR.norms, rel=1e-5)
    assert one.digest != other.digest
    rows = {layer: np.ones(3, np.float32) for layer in VECTOR.layers}
    assert as_long_as(VECTOR, rows).norms == pytest.approx(VECTOR.norms, rel=1e-5)
