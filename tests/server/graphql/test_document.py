"""What a GraphQL document may be before anything of it is executed."""

import time

import pytest
from graphql import GraphQLError, get_introspection_query

from server.graphql.document import (
    MAX_ALIASES,
    MAX_CHAIN,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_ROOT_FIELDS,
    parsed,
)


def nested(levels: int) -> str:
    return "{" + "a{" * (levels - 1) + "a" + "}" * levels


def spread(fragments: int) -> str:
    """A document of this many fragments, each of which spreads the next one twice."""
    text = "query {...f0} "
    for index in range(fragments):
        text += f"fragment f{index} on T {{ x {{...f{index + 1} y {{...f{index + 1}}} }} }} "
    return text + f"fragment f{fragments} on T {{ z }}"


def chain(fragments: int) -> str:
    """Of fragments that each spread the next one, and add no level."""
    links = (f"fragment f{index} on T {{ ...f{index + 1} }} " for index in range(fragments))
    return "{ ...f0 } " + "".join(links) + f"fragment f{fragments} on T {{ z }}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested(MAX_DEPTH + 1), "levels"),
        (nested(900), "nested too deeply"),
        ("{ x {" + "a " * MAX_FIELDS + "} }", "fields"),
        ("{ x {" + " ".join(f"b{i}: a" for i in range(MAX_ALIASES + 1)) + "} }", "aliases"),
        ("{" + "a " * (MAX_ROOT_FIELDS + 1) + "}", "fields at its root"),
        ("{ ...f } fragment f on Q {" + "a " * (MAX_ROOT_FIELDS + 1) + "}", "fields at its root"),
        ("{ a }" + " " * MAX_CHARACTERS, "characters"),
        ("{ ...f } fragment f on Q { ...g } fragment g on Q { ...f }", "spreads itself"),
        ("{" + "a " * 3100 + "}", "token"),
        ("query {", "Syntax Error"),
        ("", "Syntax Error"),
        (spread(8), "levels"),
        (chain(MAX_CHAIN), "one another"),
    ],
)
def test_a_document_beyond_the_limits_is_refused(text, said):
    with pytest.raises(GraphQLError, match=said):
        parsed(text)


def test_a_document_at_the_limits_is_read():
    fields = " ".join(f"b{index}: a" for index in range(MAX_ALIASES))
    for text in (
        nested(MAX_DEPTH),
        "{" + "a " * MAX_ROOT_FIELDS + "}",
        f"{{ x {{ {fields} }} }}",
        chain(MAX_CHAIN - 1),
    ):
        assert parsed(text).definitions


def test_tools_may_ask_for_the_schema():
    """What they ask with is among the largest documents there are."""
    assert parsed(get_introspection_query(input_value_deprecation=True)).definitions


def test_fragments_of_fragments_are_counted_in_no_time():
    """Twice as many fields by each fragment, none of them deep: they are counted, not walked."""
    text = "query {...f0} " + " ".join(
        f"fragment f{index} on T {{ ...f{index + 1} x {{ y }} ...f{index + 1} }}" for index in range(40)
    )
    started = time.perf_counter()
    with pytest.raises(GraphQLError, match="fields"):
        parsed(text + " fragment f40 on T { z }")
    assert time.perf_counter() - started < 1
