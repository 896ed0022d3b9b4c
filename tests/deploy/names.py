"""Every metric that there is: Steersman's from their registry, vLLM's from its source."""

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import REGISTRY

from server import metrics  # noqa: F401  # registers ours

# What Prometheus and the Python client add by themselves.
OTHERS = {"up", "process_resident_memory_bytes"}
ADDED = {"namespace", "pod", "instance", "job", "le"}
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@functools.cache
def ours() -> Mapping[str, frozenset[str]]:
    """Series of Steersman's own and their labels."""
    found = {}
    for collector in set(REGISTRY._collector_to_names):
        name = getattr(collector, "_name", "")
        if name.startswith("steersman_"):
            for suffix in _SUFFIXES[collector._type]:
                found[name + suffix] = frozenset(collector._labelnames)
    return found


@functools.cache
def vllms() -> frozenset[str]:
    """Series that the installed vLLM can export, as the calls in its source name and type them."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    return frozenset(
        name + suffix
        for path in (root / "v1/metrics").rglob("*.py")
        for name, kind in _made(ast.parse(path.read_text()))
        for suffix in _SUFFIXES[kind]
    )


def _made(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).lower()
        kind = next((each for each in _SUFFIXES if each in called), None)
        named = next((word.value for word in node.keywords if word.arg == "name"), None)
        if kind and isinstance(named, ast.Constant) and str(named.value).startswith("vllm:"):
            yield str(named.value).removesuffix("_total") if kind == "counter" else str(named.value), kind
