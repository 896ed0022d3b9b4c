"""`steersman vectors build-presets` and `evaluate`, against a server that answers by arithmetic."""

import argparse
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from server import vectors_cli, vectors_remote
from server.remote import Server

KEY = "ax_" + "0" * 48
FILES = {
    "v": {"1": [3.0, 0.0, 0.0], "2": [0.0, 4.0, 0.0]},
    "shuffled": {"1": [0.0, 0.5, 0.0], "2": [0.0, 0.0, 9.0]},
}


class Remote:
    """A running server: a vector's margins follow its first number; the third pair's run the other way."""

    def __init__(self):
        self.seen, self.trained, self.deleted = [], [], []
        self.refusal = None
        self.states = ["queued", "running", "complete"]  # of the training, as it is looked up

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
            case "GET", ["vectors", name, "download"]:
                return 200, FILES[name]
            case "POST", ["generate"]:
                self.trained.append(body)
                return 202, {"job_id": "j", "status": "queued"}
            case _, ["jobs", "j"]:
                return self.job(method)
            case "DELETE", ["vectors", name]:
                self.deleted.append(name)
                return 200, {"id": name}
            case "POST", ["evaluate", "margins"]:
                return 200, {"results": [self.measured(body, strength) for strength in body["strengths"]]}
        return 404, {"detail": f"no {path}"}

    def job(self, method):
        if method == "DELETE" and self.states[0] not in {"queued", "running"}:
            return 409, {"detail": "the job has ended"}
        if method == "DELETE":
            self.states = ["cancelled"]
        status = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        result = {"steering_vector_id": "shuffled"} if status == "complete" else None
        return 200, {"status": status, "result": result, "error": "no use" if status == "error" else None}

    def measured(self, body, strength):
        unit = body["vector"]["1"][0] / 30 if "vector" in body else 1.0
        slopes = [-unit if number == 2 else unit * (1 + number / 10) for number in range(len(body["pairs"]))]
        neutral = 3 + strength**2 / 10 if body["neutral"] else None
        margins = [0.5 + strength * slope for slope in slopes]
        return {"margins": margins, "neutral": neutral, "relative_dose": abs(strength) / 4}


@pytest.fixture
def remote(monkeypatch):
    """A `Remote` on a port of its own; its `url` is where."""
    monkeypatch.setattr(vectors_remote, "_POLL_SECONDS", 0.001)
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
    assert (body["method"], body["layer_idxs"], body["background"]) == ("caa", [1, 2], True)
    assert sum(answer.startswith("b") for answer in body["positive_answers"]) == 6
    couples = zip(body["positive_answers"], body["negative_answers"], strict=True)
    assert all({one[0], other[0]} == {"a", "b"} and one[1:] == other[1:] for one, other in couples)
    assert remote.deleted == ["shuffled"]
    assert "MINUS SHUFFLED" in out
    assert "RANDOM" not in out


@pytest.mark.parametrize(
    ("requests", "deleted"),
    [
        (0, []),  # while it waits
        (1, []),  # while it trains
        (2, ["shuffled"]),  # when it has just ended
        (3, ["shuffled"]),  # while its vector is downloaded
    ],
)
def test_an_interrupted_evaluation_leaves_nothing(  # noqa: PLR0917  # fixtures
    asking, remote, pairs, monkeypatch, requests, deleted
):
    """Ctrl-C cancels the training where it stands, or deletes the vector that it made."""
    get, seen = Server.get, []

    def interrupted(self, path):
        if "jobs" in path or "shuffled" in path:
            seen.append(path)
            if len(seen) == requests + 1:
                raise KeyboardInterrupt
        return get(self, path)

    monkeypatch.setattr(Server, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asking("evaluate", "v", "--pairs", pairs(), "--random", 0, "--train", pairs("train", 12))
    assert (remote.states, remote.deleted) == (["complete" if deleted else "cancelled"], deleted)


def test_a_training_that_fails_is_said(asking, remote, pairs):
    """Where the shuffled pairs cannot be learnt from, the server's reason is on standard error."""
    remote.states = ["error"]
    status, _, err = asking("evaluate", "v", "--pairs", pairs(), "--random", 0, "--train", pairs("train", 12))
    assert (status, "ended as error: no use" in err, remote.deleted) == (1, True, [])


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
    """No server, and a URL that is none or of another kind, are one line on standard error and status 1."""
    for url, says in (
        ("http://127.0.0.1:1", "does not answer"),
        ("http://h:abc", "nonnumeric port"),
        ("http://[h", "IPv6"),
        ("file:///etc", "begins with http://"),
    ):
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
