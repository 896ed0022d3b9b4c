import json

import pytest

from steering.train.pairs import Pair, answer, digest, encoded, read_jsonl


def characters(text):
    """A tokenizer with a start token, and one merge: "ab" is a single token."""
    return [0, *(ord(c) for c in text.replace("ab", "\u0101"))]


def test_span_holds_the_positions_that_predict_the_answer():
    """With P prompt tokens and a whole of N, the span is [P - 1, N - 1) and predicts the answer itself."""
    found = answer(characters, "xyz", "uvw")
    assert (found.start, found.end) == (3, 6)
    assert found.targets == tuple(map(ord, "uvw"))
    assert found.tokens == tuple(characters("xyzuvw"))


def test_a_merge_across_the_boundary_belongs_to_the_answer():
    """Where the prompt's last character merges with the answer's first, that token counts as answered."""
    found = answer(characters, "xa", "bc")
    assert found.tokens == (0, ord("x"), ord("\u0101"), ord("c"))
    assert found.targets == (ord("\u0101"), ord("c"))


def test_an_end_token_of_the_prompt_alone_does_no_harm():
    """A tokenizer that appends an end token still gives the answer's own positions."""
    found = answer(lambda text: [*characters(text), 1], "xy", "z")
    assert found.targets == (ord("z"), 1)


def test_without_a_start_token_the_first_token_is_not_predicted():
    """An empty prompt leaves the answer's first token out, and an answer of one token has no span."""
    found = answer(lambda text: characters(text)[1:], "", "xyz")
    assert found.targets == (ord("y"), ord("z"))
    with pytest.raises(ValueError, match="pair 7: nothing precedes"):
        answer(lambda text: characters(text)[1:], "", "x", "pair 7")


def test_an_answer_without_tokens_names_its_pair():
    """A pair whose answer adds nothing is refused by its number and side."""
    with pytest.raises(ValueError, match="pair 2, negative: the answer '' adds no token"):
        encoded(characters, [Pair("p", "x"), Pair("p", "x", "")])


def test_negatives_may_be_missing():
    """A pair without a negative has a positive span only."""
    (only,) = encoded(characters, [Pair("p", "x")])
    assert only.negative is None
    assert only.positive.targets == (ord("x"),)


def test_both_spellings_are_read():
    """The SDK's keys and the web app's mean the same; blank lines, a BOM, CRLF, other keys do not matter."""
    lines = [
        {"prompt": "p", "positive_answer": "a\u2028b", "negative_answer": "n"},
        {"prompt": "p", "positive": "a", "negative": None, "score": 3},
        {"prompt": "", "positive": "a"},
    ]
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    assert read_jsonl(text) == (Pair("p", "a\u2028b", "n"), Pair("p", "a"), Pair("", "a"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('"text"', "line 2: an object"),
        ('{"positive": "a"}', "line 2: prompt is missing"),
        ('{"prompt": "p", "negative": "a"}', "line 2: positive_answer is missing"),
        ('{"prompt": 3, "positive": "a"}', "line 2: prompt must be a string"),
        ('{"prompt": "p", "positive": null}', "line 2: positive must be a string"),
        ('{"prompt": "p", "positive": ""}', "line 2: positive is empty"),
        ('{"prompt": "p", "positive": "a", "negative": ["b"]}', "line 2: negative must be a string"),
        ('{"prompt": "p", "positive": "a", "positive_answer": "b"}', "positive_answer and positive"),
        ('{"prompt": "\\ud800", "positive": "a"}', "line 2: prompt holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_key(line, message):
    """Errors say which line, and which key of it."""
    with pytest.raises(ValueError, match=message):
        read_jsonl('{"prompt": "p", "positive": "a"}\n' + line)


def test_no_lines_are_refused():
    """An empty file is not an empty data set."""
    with pytest.raises(ValueError, match="no pairs"):
        read_jsonl("\n \n")


def test_digest_depends_on_content_and_order_alone():
    """Equal pairs have one digest; moving text between fields, or pairs, changes it."""
    pairs = [Pair("p", "a", "n"), Pair("q", "b")]
    assert digest(pairs) == digest([Pair("p", "a", "n"), Pair("q", "b", None)])
    others = [[*pairs[::-1]], [Pair("pa", "", "n"), pairs[1]], [pairs[0], Pair("q", "b", "")], pairs[:1]]
    assert len({digest(pairs), *map(digest, others)}) == 5
