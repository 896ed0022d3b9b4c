"""`steersman sae` against a server whose states are made up: trained, resumed, added, refused."""

import argparse
import itertools
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from server import remote_states, saes, saes_cli
from server.text_states import TextStates
from steering.sae import saelens
from steering.sae.encode import Architecture
from steering.sae.sae import SparseAutoencoder

WIDTH, LAYERS, LAYER = 8, 6, 4
MODEL = {
    "name": "org/model",
    "names": ["model"],
    "fingerprint": "f" * 64,
    "layers": LAYERS,
    "width": WIDTH,
    "weights": "/nowhere/model",
}


class States(BaseHTTPRequestHandler):
    """A word's state is a few directions of its own; `left` counts the answers until it fails."""

    left = None
    asked = 0

    def do_GET(self):
        shelf = saes.shelved(self.server.folder)[0]
        self._send(json.dumps({"model": MODEL, "saes": [{"name": card.name} for card in shelf]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked += 1
        if self.left is not None and self.asked > self.left:
            self.send_error(503, "the engine has stopped")
            return
        texts = [[zlib.crc32(word.encode()) % 997 for word in text.split()] for text in body["texts"]]
        texts = [ids[: body["max_tokens"]] for ids in texts]
        found = [token for ids in texts for token in ids[1:]]
        self._send(
            TextStates(
                TABLE[found],
                np.array(found, np.int32),
                np.repeat(np.arange(len(texts)), [len(ids) - 1 for ids in texts]).astype(np.int32),
                np.array([ids[0] for ids in texts], np.int32),
            ).blob
        )

    def _send(self, content):
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def _table():
    random = np.random.default_rng(0)
    directions = random.standard_normal((16, WIDTH))
    active = random.random((997, 16)) * (random.random((997, 16)) < 0.15)
    return (active @ directions * 4 + random.standard_normal((997, WIDTH)) * 0.05).astype(np.float32)


TABLE = _table()


@pytest.fixture
def corpus(tmp_path):
    """Some 40,000 words in 200 paragraphs."""
    random = np.random.default_rng(1)
    words = [f"word{number}" for number in range(800)]
    paragraphs = [" ".join(random.choice(words, 200)) for _ in range(200)]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


@pytest.fixture
def server(tmp_path):
    """The fake, whose shelf is the one of the home `home`."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (States,), {}))
    made.folder = tmp_path / "home" / "saes"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def steersman(server, tmp_path, capsys):
    """Run `steersman sae …`: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    saes_cli.add_parser(parser.add_subparsers())

    def run(*words, home="home"):
        argv = ["sae", "--home", str(tmp_path / home), *map(str, words)]
        if words[0] in {"train", "add", "evaluate"}:
            argv += ["--url", f"http://127.0.0.1:{server.server_port}"]
        status = saes_cli.run(parser.parse_args(argv))
        return status, *capsys.readouterr()

    return run


def training(corpus, *more):
    return ("train", "--corpus", corpus, "--latents", "32", "--active", "3", "--tokens", "36000", *more)


def test_one_is_trained_measured_stored_and_listed(steersman, corpus, server):
    status, out, err = steersman(*training(corpus, "--name", "mine"))
    assert status == 0, err
    assert "variance explained" in out
    assert "not measured: the model's weights (/nowhere/model) are not on this machine" in out
    stored = saes.read(server.folder / "mine")
    assert (stored.card.layer, stored.card.architecture, stored.card.approximated) == (LAYER, "topk", True)
    assert stored.card.quality["explained"] > 0.5
    assert stored.sae.subset_is_exact
    assert f"{stored.card.quality['explained']:.1%}" in out
    assert not (server.folder / ".training-mine").exists()
    status, out, _ = steersman("list")
    assert "mine" in out
    assert json.loads(steersman("list", "--json")[1])["saes"][0]["digest"] == stored.sae.digest


def test_an_interrupted_training_goes_on_and_comes_to_the_same(steersman, corpus, server):
    assert steersman(*training(corpus, "--name", "whole"), home="other")[0] == 0
    whole, asked = server.RequestHandlerClass.asked, server.RequestHandlerClass
    asked.asked, asked.left = 0, whole // 2 + 1
    status, _, err = steersman(*training(corpus, "--name", "cut"))
    assert status == 1
    assert "503" in err
    assert (server.folder / ".training-cut" / "checkpoint.safetensors").exists()
    asked.asked, asked.left = 0, None
    status, _, err = steersman(*training(corpus, "--name", "cut"))
    assert status == 0, err
    assert "Going on after" in err
    assert asked.asked < whole
    digests = [
        saes.read(folder).sae.digest
        for folder in (server.folder / "cut", server.folder.parent.parent / "other" / "saes" / "whole")
    ]
    assert digests[0] == digests[1]


def test_a_time_limit_plans_no_more_than_the_server_captures_in_it(steersman, corpus, server, monkeypatch):
    clock = itertools.count(0, 10.0)  # a batch takes ten seconds, of which a minute has six
    monkeypatch.setattr(remote_states.time, "monotonic", lambda: next(clock))
    server.RequestHandlerClass.left = 2
    assert steersman(*training(corpus, "--name", "mine", "--minutes", "1"))[0] == 1
    plan = json.loads((server.folder / ".training-mine" / "plan.json").read_text())
    assert plan["tokens"] % 6 == 0
    assert 0 < plan["tokens"] < 36000 / 3
    server.RequestHandlerClass.left = None
    assert steersman(*training(corpus, "--name", "mine", "--minutes", "3"))[0] == 0


def test_a_checkpoint_of_another_training_is_not_gone_on_with(steersman, corpus, server):
    server.RequestHandlerClass.left = 6
    assert steersman(*training(corpus, "--name", "mine"))[0] == 1
    server.RequestHandlerClass.left = None
    status, _, err = steersman(*training(corpus, "--name", "mine"), "--latents", "16")
    assert status == 1
    assert "another latents" in err
    assert "--restart" in err
    assert steersman(*training(corpus, "--name", "mine"), "--latents", "16", "--restart")[0] == 0


def autoencoder(width=WIDTH, layer=LAYER, model="org/model"):
    torch.manual_seed(0)
    return SparseAutoencoder(
        architecture=Architecture.STANDARD,
        W_enc=torch.randn(width, 12),
        W_dec=torch.randn(12, width),
        b_enc=torch.zeros(12),
        b_dec=torch.zeros(width),
        layer=layer,
        hook=f"blocks.{layer}.hook_resid_post",
        model=model,
    )


def test_one_from_a_folder_is_added_evaluated_and_removed(steersman, corpus, server, tmp_path):
    saelens.write(autoencoder(), tmp_path / "theirs")
    status, _, err = steersman("add", tmp_path / "theirs", "--name", "theirs", "--corpus", corpus)
    assert status == 0, err
    stored = saes.read(server.folder / "theirs")
    assert stored.card.source == str(tmp_path / "theirs")
    assert not stored.card.approximated
    assert stored.density.shape == (12,)
    status, out, err = steersman("evaluate", "theirs", "--corpus", corpus)
    assert status == 0, err
    assert "variance explained" in out
    status, _, err = steersman("add", tmp_path / "theirs", "--name", "theirs", "--corpus", corpus)
    assert (status, "already" in err or "there is" in err) == (1, True)
    assert steersman("remove", "theirs")[0] == 0
    assert steersman("evaluate", "theirs")[0] == 1


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"width": WIDTH + 1}, f"reads states {WIDTH + 1} wide"),
        ({"layer": LAYERS}, f"has blocks 0 to {LAYERS - 1}"),
        ({"model": "gpt2"}, "trained on 'gpt2'"),
    ],
)
def test_another_models_is_refused(steersman, tmp_path, server, parts, says):
    saelens.write(autoencoder(**parts), tmp_path / "theirs")
    status, _, err = steersman("add", tmp_path / "theirs")
    assert status == 1
    assert says in err
    assert not list(server.folder.glob("[!.]*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add", "pickled"), "pickle"),
        (("add", "empty"), "holds none of"),
        (("train", "--layer", "6"), "layers 0 to 5"),
        (("train", "--corpus", "nowhere.txt"), "there is no file or folder nowhere.txt"),
        (("train", "--name", "../up"), "the name of an autoencoder"),
        (("evaluate", "nothing"), "no autoencoder 'nothing'"),
        (("remove", "nothing"), "nothing"),
    ],
)
def test_what_cannot_be_done_is_said(steersman, corpus, monkeypatch, words, says):
    monkeypatch.chdir(corpus.parent)
    pickled, empty = corpus.parent / "pickled", corpus.parent / "empty"
    pickled.mkdir()
    (pickled / "ae.pt").write_bytes(b"\x80\x04K\x01.")
    empty.mkdir()
    more = () if "--corpus" in words or words[0] in {"evaluate", "remove"} else ("--corpus", corpus)
    status, _, err = steersman(*words, *more)
    assert status == 1
    assert says in err
