"""Writes the table of values in helm/README.md from the comments of values.yaml: `python helm/readme.py`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent
BEGIN, END = "<!-- values: written by readme.py -->", "<!-- end of values -->"


def described() -> Iterator[tuple[str, str]]:
    """Dotted path and comment of every key of values.yaml, in its order."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := re.match(r"( *)([\w./-]+):", line):
            depth = len(match[1]) // 2
            path[depth:] = [match[2]]
            yield ".".join(path), " ".join(comment)
            comment = []
        elif line.lstrip().startswith("#"):
            comment.append(line.lstrip("# "))
        else:
            comment = []


def default(values: dict[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found[part]
    return found


def rows() -> Iterator[str]:
    """A line for each value; a group with a comment of its own has a line too."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    free = ("annotations", "requests", "limits", "labels")
    inside: str | None = None
    for path, comment in described():
        if inside and path.startswith(inside):
            continue
        inside = f"{path}." if path.endswith(free) else None
        value = default(values, path)
        group = isinstance(value, dict) and value and inside is None
        if group and not comment:
            continue
        shown = "" if group else f"`{json.dumps(value)}`".replace("|", "\\|")
        yield f"| `{path}` | {shown} | {comment} |"


def table() -> str:
    return "\n".join([BEGIN, "| value | default | meaning |", "|---|---|---|", *rows(), END])


def written(readme: str) -> str:
    """The README with its table made anew."""
    before, _, rest = readme.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


if __name__ == "__main__":
    file = CHART / "README.md"
    file.write_text(written(file.read_text()))
