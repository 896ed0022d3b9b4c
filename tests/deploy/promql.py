"""Expressions taken apart by a real PromQL parser."""

import re
from collections.abc import Iterator

import promql_parser

from tests.deploy import names


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of series. Raises ValueError for what does not parse."""
    filled = re.sub(r"\$__(rate_interval|interval|range)", "5m", expression)
    yield from _within(promql_parser.parse(filled))


def _within(node: object) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        if (inner := getattr(node, name, None)) is not None and inner is not node:
            yield from _within(inner)
    for each in getattr(node, "args", None) or ():
        yield from _within(each)


def faults(expression: str, recorded: frozenset[str] = frozenset()) -> list[str]:
    """What names no series that there is, or a label that a series of ours has not."""
    found = []
    for selector in selectors(expression):
        name = selector.name
        if name is None:
            found.append(f"{selector}: a selector without a name")
        elif name in names.ours():
            labels = {matcher.name for matcher in selector.matchers.matchers} - names.ADDED
            found += [f"{name} has no label {label}" for label in labels - names.ours()[name]]
        elif name not in names.vllms() | names.OTHERS | recorded:
            found.append(f"{name} is no metric")
    return found


def grouped(expression: str) -> set[str]:
    """Labels that the expression groups by."""
    return {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in labels.split(",")
        if label.strip()
    }
