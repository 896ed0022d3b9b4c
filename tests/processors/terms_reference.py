"""What a forbidden term is, without an automaton: every part of a text is compared with it."""

import re
import unicodedata


def fold(text):
    return text.replace("İ", "i").replace("ı", "i").casefold()


def key(folded):
    """Decomposed character by character, the dot that lower-casing İ leaves behind an i dropped."""
    return re.sub("i\u0307+", "i", "".join(unicodedata.normalize("NFD", c) for c in folded))


def contains(text, term):
    folded = fold(text)
    wanted = re.sub("i\u0307+", "i", unicodedata.normalize("NFD", fold(term)))
    count = len(folded)
    # A part is at most as long as what it spells, but for dots.
    return any(
        key(folded[first:last]) == wanted
        for first in range(count)
        for last in range(first + 1, min(count, first + len(wanted) + folded.count("\u0307")) + 1)
    )


def contains_any(text, terms):
    return any(contains(text, term) for term in terms)
