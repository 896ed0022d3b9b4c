"""A GraphQL document as text → parsed, of bounded size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
)

MAX_CHARACTERS, MAX_TOKENS = 50_000, 3_000
MAX_DEPTH, MAX_FIELDS, MAX_ALIASES = 16, 600, 20  # with each fragment counted wherever it is spread
MAX_ROOT_FIELDS, MAX_CHAIN = 10, 50
_REMEMBERED = 128


@lru_cache(_REMEMBERED)
def parsed(text: str) -> DocumentNode:
    """Raises GraphQLError where it is no document, or one beyond the limits."""
    if len(text) > MAX_CHARACTERS:
        raise GraphQLError(f"The document is longer than {MAX_CHARACTERS} characters.")
    try:
        document = parse(text, max_tokens=MAX_TOKENS)
        _Limits(document).check()
    except RecursionError as error:
        raise GraphQLError("The document nests too deeply.") from error
    return document


@dataclass(slots=True)
class _Size:
    """`width` counts the fields that stand directly in it."""

    depth: int = 0
    width: int = 0
    fields: int = 0
    aliases: int = 0

    def holds(self, other: "_Size") -> None:
        self.depth = max(self.depth, other.depth)
        self.width += other.width
        self.fields += other.fields
        self.aliases += other.aliases


class _Limits:
    """Each fragment is measured once, so that fragments of fragments cost no more than their text."""

    def __init__(self, document: DocumentNode) -> None:
        definitions = document.definitions
        self._operations = [each for each in definitions if isinstance(each, OperationDefinitionNode)]
        self._fragments: Mapping[str, FragmentDefinitionNode] = {
            each.name.value: each for each in definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._measured: dict[str, _Size] = {}
        self._open: list[str] = []

    def check(self) -> None:
        """Raises GraphQLError. Fragments that nothing spreads are left to validation."""
        for operation in self._operations:
            size = self._size(operation.selection_set)
            for what, count, most in (
                ("levels", size.depth, MAX_DEPTH),
                ("fields", size.fields, MAX_FIELDS),
                ("aliases", size.aliases, MAX_ALIASES),
                ("fields at its root", size.width, MAX_ROOT_FIELDS),
            ):
                if count > most:
                    raise GraphQLError(f"The operation has {count} {what}; {most} are allowed.", operation)

    def _size(self, selections: SelectionSetNode | None) -> _Size:
        size = _Size()
        for node in selections.selections if selections else ():
            if isinstance(node, FieldNode):
                inner = self._size(node.selection_set)
                aliases = inner.aliases + (node.alias is not None)
                size.holds(_Size(inner.depth + 1, 1, inner.fields + 1, aliases))
            elif isinstance(node, InlineFragmentNode):
                size.holds(self._size(node.selection_set))
            elif isinstance(node, FragmentSpreadNode):
                size.holds(self._fragment(node.name.value))
        return size

    def _fragment(self, name: str) -> _Size:
        if name in self._open:
            raise GraphQLError(f"The fragment {name!r} spreads itself.", self._fragments[name])
        if len(self._open) >= MAX_CHAIN:
            raise GraphQLError(f"Fragments spread one another {MAX_CHAIN} times at most.")
        if name not in self._measured:
            fragment = self._fragments.get(name)
            self._open.append(name)
            self._measured[name] = self._size(fragment.selection_set if fragment else None)
            self._open.pop()
        return self._measured[name]


def root_fields(operation: OperationDefinitionNode) -> list[str]:
    """Those that the operation names itself."""
    selections = operation.selection_set.selections
    return [each.name.value for each in selections if isinstance(each, FieldNode)]
