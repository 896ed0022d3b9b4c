"""What patterns take out of a text before it is stored."""

import pytest

from server.redaction import NOTHING_REDACTED, Redaction, read_patterns

EMAIL = r"[\w.]+@[\w.]+"


def test_every_text_within_is_redacted_and_nothing_else():
    """At any depth, but for the words of the protocol; keys and numbers stay."""
    given = {
        "role": "user@x",
        "content": [{"type": "text", "text": "to a@b and c@d."}, {"deep": ("e@f", 7, None, True)}],
    }
    assert Redaction([EMAIL]).json(given) == {
        "role": "user@x",
        "content": [
            {"type": "text", "text": "to [redacted] and [redacted]"},
            {"deep": ["[redacted]", 7, None, True]},
        ],
    }
    assert given["content"][1]["deep"][0] == "e@f"


def test_what_spells_a_text_by_its_tokens_goes_with_it():
    """No pattern would find an address whose letters stand in a list."""
    given = {"logprobs": {"content": [{"token": "a@"}]}, "token_ids": [1], "text": "fine"}
    assert Redaction([EMAIL]).json(given) == {"logprobs": None, "token_ids": None, "text": "fine"}


def test_without_patterns_nothing_changes():
    given = {"content": "a@b", "logprobs": {"content": []}}
    assert NOTHING_REDACTED.json(given) is given
    assert NOTHING_REDACTED.text("a@b") == "a@b"


def test_patterns_follow_one_another():
    """A later one sees what an earlier one left."""
    assert Redaction(["a+", "bc"]).text("baac") == "b[redacted]c"
    assert Redaction([r"\d", "x"]).text("1x2") == "[redacted]" * 3
    assert Redaction(["x"]).text(None) is None


def test_a_file_holds_one_pattern_a_line(tmp_path):
    path = tmp_path / "patterns"
    path.write_text("# cards\n\\d{4}[ ,]\\d{4}\n\n  spaced\n", encoding="utf-8")
    assert read_patterns(path) == (r"\d{4}[ ,]\d{4}", "  spaced")


@pytest.mark.parametrize(("line", "said"), [("(", "line 2"), ("x*", "the empty text")])
def test_a_pattern_that_cannot_be_meant_is_refused_by_its_line(tmp_path, line, said):
    path = tmp_path / "patterns"
    path.write_text(f"fine\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said) as refused:
        read_patterns(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_patterns(tmp_path / "none")
