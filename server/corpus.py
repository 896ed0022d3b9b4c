"""Texts that autoencoders learn from and are measured on, cut into passages of a few hundred tokens."""

import hashlib
import importlib.metadata
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Final

from steering.train.pairs import read_jsonl

DESCRIPTION: Final = (
    "what is installed with Steersman: Newton's Opticks (which tvm_ffi ships), Python's language "
    "reference (pydoc_data), the descriptions of installed packages, and Steersman's own pairs of answers as "
    "chats; English throughout"
)
KINDS: Final = (".txt", ".md", ".rst", ".jsonl")

_PASSAGE = 900  # characters, at which a passage ends: some 220 tokens of English
_LEAST = 100  # characters of a passage that is worth its place
_HELD_OUT = 16  # every such passage of a source
_DESCRIBED = 8000  # characters of one package's description: some are changelogs of decades
_MAX_FILE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Passage:
    """`prompt`: it answers this message of a user's."""

    text: str
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages in the order in which they are learned from, kinds mixed; `held_out` are not among them."""

    name: str
    learnt: tuple[Passage, ...]
    held_out: tuple[Passage, ...]

    @property
    def digest(self) -> str:
        made = hashlib.sha256()
        for passage in (*self.learnt, *self.held_out):
            made.update(json.dumps([passage.prompt, passage.text]).encode())
        return made.hexdigest()

    @property
    def characters(self) -> int:
        return sum(len(passage.text) + len(passage.prompt or "") for passage in self.learnt)


def corpus(path: str | None) -> Corpus:
    """Of a file or folder, or the one that is installed. Raises ValueError for what holds too little text."""
    made = installed() if path is None else read(Path(path))
    if len(made.held_out) < 2:
        raise ValueError(
            f"{made.name} holds {len(made.learnt) + len(made.held_out)} passages of some {_PASSAGE} "
            f"characters; {2 * _HELD_OUT} are the least: every {_HELD_OUT}th is held out to measure on"
        )
    return made


def installed() -> Corpus:
    """See DESCRIPTION. Sources that an installation lacks are left out."""
    positive, negative = [], []
    for path in sorted((files("steering") / "presets").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".jsonl"):
            pairs = read_jsonl(path.read_text(encoding="utf-8"))
            positive += [Passage(pair.positive, pair.prompt) for pair in pairs]
            negative += [Passage(pair.negative, pair.prompt) for pair in pairs if pair.negative]
    prose = [passages(text, plain=True) for text in (_opticks(), _reference())]
    described = passages("\n\n".join(_descriptions()), plain=True)
    # Answers of one pair have one number in both lists, and so are held out together.
    return _mixed("the installed corpus", [positive, negative, *prose, described])


def _opticks() -> str:
    found = (
        [
            file
            for file in importlib.metadata.files("apache-tvm-ffi") or ()
            if file.name == "Isaac.Newton-Opticks.txt"
        ]
        if _has("apache-tvm-ffi")
        else []
    )
    return found[0].read_text(encoding="utf-8") if found else ""


def _has(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _reference() -> str:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  # some systems package it apart
    except ImportError:
        return ""
    return "\n\n".join(topics[name] for name in sorted(topics))


def _descriptions() -> Iterator[str]:
    found = {}
    for package in importlib.metadata.distributions():
        text = package.metadata.get_payload() or package.metadata["Description"] or ""
        found[package.name] = str(text)[:_DESCRIBED]
    for name in sorted(found):
        yield found[name]


def read(path: Path) -> Corpus:
    """A file, or all files of a folder whose names end in one of KINDS."""
    if path.is_dir():
        paths = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in KINDS and each.is_file()]
        if not paths:
            raise ValueError(f"{path} holds no file that ends in {', '.join(KINDS)}")
    elif path.is_file():
        paths = [path]
    else:
        raise ValueError(f"there is no file or folder {path}")
    found = [_file(each) for each in paths]
    return _mixed(str(path), [[passage for passages in found for passage in passages]])


def _file(path: Path) -> list[Passage]:
    if path.stat().st_size > _MAX_FILE:
        raise ValueError(f"{path} has more than {_MAX_FILE >> 20} MiB: split it, or give a part of it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error
    if path.suffix.lower() != ".jsonl":
        return passages(text)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return [passage for number, line in lines for passage in _line(f"{path}, line {number}", line)]


def _line(where: str, line: str) -> list[Passage]:
    """`{"text"}`, `{"prompt", "answer"}`, or a pair of answers as vectors are made from."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    texts = (
        {name: value for name, value in data.items() if isinstance(value, str)}
        if isinstance(data, dict)
        else {}
    )
    if "text" in texts:
        return passages(texts["text"])
    answers = [texts[name] for name in ("answer", "positive_answer", "negative_answer") if texts.get(name)]
    if "prompt" not in texts or not answers:
        raise ValueError(f'{where} has neither "text" nor "prompt" and "answer"')
    return [Passage(answer, texts["prompt"]) for answer in answers]


def passages(text: str, *, plain: bool = False) -> list[Passage]:
    """Neighbouring paragraphs together, long ones cut. `plain` keeps only what reads as prose."""
    found: list[str] = []
    held = ""
    for paragraph in _paragraphs(text):
        if plain and not _reads_as_prose(paragraph):
            continue
        for piece in _pieces(" ".join(paragraph.split()) if plain else paragraph.strip()):
            if held and len(held) + len(piece) > _PASSAGE:
                found.append(held)
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held and (len(held) >= _LEAST or not found):
        found.append(held)
    return [Passage(piece) for piece in found if piece and not (plain and len(piece) < _LEAST)]


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _pieces(paragraph: str) -> Iterator[str]:
    """Of at most _PASSAGE characters, cut after a sentence or a word where there is one."""
    while len(paragraph) > _PASSAGE:
        head = paragraph[:_PASSAGE]
        cut = max(head.rfind(mark) + len(mark) for mark in (". ", "? ", "! ", ".\n"))
        if cut < _PASSAGE // 2:
            cut = max(head.rfind(" "), head.rfind("\n")) + 1 or _PASSAGE
        yield paragraph[:cut].rstrip()
        paragraph = paragraph[cut:].lstrip()
    if paragraph:
        yield paragraph


def _reads_as_prose(paragraph: str) -> bool:
    """Sentences, not code, tables, links or rules: mostly letters, in words of ordinary length."""
    words = paragraph.split()
    letters = sum(character.isalpha() or character in " \n,.;'" for character in paragraph)
    return len(words) >= 8 and letters >= 0.9 * len(paragraph) and len(paragraph) <= 9 * len(words)


def _mixed(name: str, sources: Sequence[Sequence[Passage]]) -> Corpus:
    """Sources in turns, each in an order of its own that is always the same."""
    held = [list(source[_HELD_OUT - 1 :: _HELD_OUT]) for source in sources]
    rest = [[each for number, each in enumerate(source) if (number + 1) % _HELD_OUT] for source in sources]
    return Corpus(name, _in_turns(rest), _in_turns(held))


def _in_turns(sources: Sequence[list[Passage]]) -> tuple[Passage, ...]:
    for number, source in enumerate(sources):
        random.Random(number).shuffle(source)  # noqa: S311  # an order, not a secret
    return tuple(each for each in chain.from_iterable(zip_longest(*sources)) if each is not None)
