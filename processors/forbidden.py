"""Terms that a text must not contain, whatever their case and however tokens split them.

A term occurs where a part of the text is its canonical caseless match (Unicode D145), as far as one can tell
without reordering the text's combining marks: both are case-folded and decomposed and then equal. The part
may begin and end inside what one character folds to, so ß contains s. Beyond Unicode, the dotted and the
dotless i are one letter, as upper-casing and Turkish would have it.

An automaton over bytes follows a text; its states say which terms may be under way. The tokens that would
complete one are found for a state by following the bytes of all tokens at once.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from processors.vocabulary import Ints, Vocabulary

ROOT = 0  # the state at the start of a text
_DOT = "\u0307"  # lower-casing İ leaves it behind the i, where it means nothing
_DOTTED = re.compile(f"i{_DOT}+")
_FINAL, _START = 0, 1  # nodes
_LAST_FOLDED = 0x2FFFF  # above it no character has another case or a decomposition


def _fold(text: str) -> str:
    return text.replace("İ", "i").replace("ı", "i").casefold()


def _decompose(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def pattern(term: str) -> str:
    """The folded and decomposed characters that spell `term`; terms with equal patterns are one term."""
    return _DOTTED.sub("i", _decompose(_fold(term)))


@dataclass(frozen=True, slots=True)
class _Spellings:
    """Characters by what they stand for, folded and decomposed: `whole`, or only its head, tail or middle.

    Those that stand for themselves are not listed.
    """

    whole: dict[str, list[str]] = field(default_factory=dict)
    heads: dict[str, list[str]] = field(default_factory=dict)
    tails: dict[str, list[str]] = field(default_factory=dict)
    middles: dict[str, list[str]] = field(default_factory=dict)

    def add(self, character: str) -> None:
        parts = [_decompose(part) for part in _fold(character)]
        if parts == [character]:
            return
        count = len(parts)
        for first in range(count):
            for last in range(first + 1, count + 1):
                kinds = (self.middles, self.tails), (self.heads, self.whole)
                kind = kinds[first == 0][last == count]
                kind.setdefault("".join(parts[first:last]), []).append(character)

    def longest(self) -> int:
        kinds = (self.whole, self.heads, self.tails, self.middles)
        return max(len(folded) for kind in kinds for folded in kind)


@cache
def _spellings() -> _Spellings:
    spellings = _Spellings()
    for code in range(_LAST_FOLDED + 1):
        if not 0xD800 <= code < 0xE000:  # surrogates are no characters
            spellings.add(chr(code))
    return spellings


@cache
def _longest() -> int:
    return _spellings().longest()


def prepare() -> None:
    """Read Unicode's tables now, a tenth of a second, and not with the first term."""
    _longest()


def _steps(folded: str) -> Iterator[tuple[int, int, str]]:
    """(position, next position, character): the characters by which a text goes on in a pattern."""
    spellings, end = _spellings(), len(folded)
    for position in range(end):
        for stop in range(position + 1, min(end, position + _longest()) + 1):
            part = folded[position:stop]
            found = list(spellings.whole.get(part, ()))
            if len(part) == 1 and _decompose(_fold(part)) == part:
                found.append(part)
            if position == 0:
                found += spellings.tails.get(part, ())
            if stop == end:
                found += spellings.heads.get(part, ())
            if position == 0 and stop == end:
                found += spellings.middles.get(part, ())
            for character in found:
                yield position, stop, character
        if position and folded[position - 1] == "i":
            yield position, position, _DOT


class _Nodes:
    """The byte-wise steps of all patterns: a node is a place in a pattern, or inside a character there."""

    def __init__(self, terms: Iterable[str]) -> None:
        self.moves: list[dict[int, set[int]]] = [{}, {}]
        self._inner: dict[tuple[int, int], int] = {}
        for folded in sorted(set(map(pattern, terms))):
            places = [_START, *(self._new() for _ in folded[1:]), _FINAL]
            for position, stop, character in _steps(folded):
                self._spell(places[position], places[stop], character.encode())

    def _spell(self, node: int, target: int, spelling: bytes) -> None:
        for byte in spelling[:-1]:
            inner = self._inner.get((node, byte))
            if inner is None:
                inner = self._inner[node, byte] = self._new()
                self.moves[node].setdefault(byte, set()).add(inner)
            node = inner
        self.moves[node].setdefault(spelling[-1], set()).add(target)

    def _new(self) -> int:
        self.moves.append({})
        return len(self.moves) - 1


class Automaton:
    """Follows texts made of `vocabulary`; a state is a set of nodes, numbered and worked out when first met.

    The node where every term begins is in each of them, unlisted.
    """

    def __init__(self, terms: Sequence[str], vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._moves = _Nodes(terms).moves
        self._states: dict[tuple[int, ...], int] = {}
        self._keys: list[tuple[int, ...]] = []
        self._table = np.zeros((16, 256), np.int32)
        self._known = np.zeros(16, np.bool_)  # whether the row of the table is filled
        self._completes = np.zeros(16, np.bool_)
        self._number(())
        self._fill(ROOT)
        begins = np.flatnonzero(self._table[ROOT][vocabulary.text] != ROOT)
        self._at_root = np.zeros(vocabulary.ids.size, np.bool_)  # by place in the vocabulary
        self._at_root[self._completing(begins, ROOT)] = True

    def completes(self, state: int) -> bool:
        """Whether the text that led to `state` ends in a term."""
        return bool(self._completes[state])

    def advance(self, state: int, token: int) -> int:
        """The state after one more token."""
        for byte in self._vocabulary[token]:
            if not self._known[state]:
                self._fill(state)
            state = int(self._table[state, byte])
        return state

    def banned(self, state: int) -> Ints:
        """Ids of the tokens that complete a term in a text that led to `state`."""
        if not self._known[state]:
            self._fill(state)
        banned = self._at_root
        first = self._vocabulary.first
        # Only bytes that lead elsewhere than at the start of a text can complete what is under way.
        bytes_ = np.flatnonzero(self._table[state] != self._table[ROOT])
        if bytes_.size:
            banned = banned.copy()
            places = np.concatenate([np.arange(first[byte], first[byte + 1]) for byte in bytes_])
            banned[self._completing(self._vocabulary.begin[places], state)] = True
        ids: Ints = self._vocabulary.ids[banned]
        return ids

    def _completing(self, at: Ints, state: int) -> Ints:
        """Places of the tokens whose text, from the bytes `at` on, completes a term begun in `state`.

        A token is followed only while it matters what was before it. What it completes by itself is known
        from the root, for which every byte that could begin a term is followed.
        """
        vocabulary = self._vocabulary
        states = np.full(at.size, state, np.int32)
        fresh = np.full(at.size, ROOT, np.int32)  # where the same bytes lead at the start of a text
        found = [at[:0]]
        while at.size:
            self._fill_all(states)
            byte = vocabulary.text[at]
            states = self._table[states, byte]
            completed = self._completes[states]
            found.append(at[completed])
            if state != ROOT:
                self._fill_all(fresh)
                fresh = self._table[fresh, byte]
            going = ~(completed | vocabulary.ends[at]) & (states != fresh)
            at, states, fresh = at[going] + 1, states[going], fresh[going]
        return np.searchsorted(vocabulary.begin, np.concatenate(found), side="right") - 1

    def _fill_all(self, states: NDArray[np.int32]) -> None:
        known = self._known[states]
        if not known.all():
            for state in np.unique(states[~known]):
                self._fill(int(state))

    def _fill(self, state: int) -> None:
        """Work out where each byte leads from `state`."""
        begun = self._moves[_START]
        moves = {byte: set(nodes) for byte, nodes in begun.items()} if state == ROOT else {}
        for node in self._keys[state]:
            for byte, nodes in self._moves[node].items():
                moves.setdefault(byte, set(begun.get(byte, ()))).update(nodes)
        row = self._table[ROOT].copy()
        for byte, nodes in moves.items():
            row[byte] = self._number(tuple(sorted(nodes)))
        self._table[state] = row
        self._known[state] = True

    def _number(self, key: tuple[int, ...]) -> int:
        state = self._states.setdefault(key, len(self._keys))
        if state == len(self._keys):
            self._keys.append(key)
            if state == len(self._known):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
                self._known = np.concatenate([self._known, np.zeros_like(self._known)])
                self._completes = np.concatenate([self._completes, np.zeros_like(self._completes)])
            self._completes[state] = _FINAL in key
        return state
