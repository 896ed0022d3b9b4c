"""What is noted of a request while it runs."""

import pytest

from server.observation import NOTED, Observation, current_observation, observed


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"prompt": "Name a fruit."}, "Name a fruit."),
        ({"prompt": ["first", "second"]}, "first"),
        ({"prompts": ["first", "second"]}, "first"),
        ({"prompt": [1, 2, 3]}, None),
        ({"prompt": [[1, 2], [3]]}, None),
        ({"input": "to respond to"}, "to respond to"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "said"}]}]}, "said"),
        (
            {
                "messages": [
                    {"role": "system", "content": "be good"},
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "well"},
                    {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "last"}]},
                    {"role": "tool", "content": "42"},
                ]
            },
            "last",
        ),
        ({"messages": [{"role": "system", "content": "only"}]}, "only"),
        ({"messages": "no list", "model": 3}, "no list"),
        ({"messages": [None, 4, {"role": "user"}]}, None),
        ({"prompt": ""}, None),
        ({}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_the_prompt_is_what_the_user_said_last(body, prompt):
    """Whatever a client sent, valid or not: the last message of the user, the first of several prompts."""
    observation = Observation()
    observation.asks(body)
    assert observation.prompt == prompt
    assert observation.model is None


def test_texts_are_cut():
    observation = Observation()
    observation.asks({"prompt": "x" * 10_000, "model": "alias"})
    observation.counts(1, 2, "y" * 10_000)
    assert (observation.prompt, observation.output) == ("x" * NOTED, "y" * NOTED)
    assert observation.model == "alias"
    observation.chooses("z" * 10_000)
    assert observation.output == "z" * NOTED


def test_the_first_model_that_is_resolved_stays():
    """Candidates of an ensemble ask others."""
    observation = Observation()
    observation.asks({"model": "default"})
    observation.resolves("base")
    observation.resolves("adapter")
    assert observation.model == "base"


def test_the_chosen_candidate_is_the_answer():
    """Without a choice it is the last text; later engine requests, as a judge's, do not replace a choice."""
    observation = Observation()
    observation.counts(5, 2, "first")
    observation.counts(0, 3, "second")
    assert observation.output == "second"
    observation.chooses("first")
    observation.chooses("")
    observation.counts(4, 1, "yes")
    assert observation.output == "first"
    assert (observation.prompt_tokens, observation.completion_tokens) == (9, 6)


def test_notes_go_nowhere_where_nothing_is_recorded():
    assert current_observation.get() is None
    observed().fails("unheard")
    assert observed().error is None
