import json
import math
import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import args
from processors.args import AdsArgs, ArgumentError, ProcessorArgs, TypicalArgs, fresh_group

unit = st.floats(0, 1)
positive_unit = st.floats(0, 1, exclude_min=True)


@st.composite
def ads_args(draw):
    siblings = draw(st.integers(1, 16))
    return AdsArgs(
        subset_size=draw(st.integers(1, 32)),
        beta=draw(st.floats(0, 0.9)),
        group=draw(st.integers(0, 2**63 - 1)),
        slot=draw(st.integers(0, siblings - 1)),
        siblings=siblings,
        top_k=draw(st.integers(0, 100_000)),
        top_p=draw(positive_unit),
        min_p=draw(unit),
    )


processor_args = st.builds(
    ProcessorArgs,
    st.none() | st.builds(TypicalArgs, positive_unit, unit),
    st.none() | ads_args(),
    st.lists(st.text(min_size=1, max_size=10), max_size=5).map(tuple),
)


@given(processor_args)
def test_what_the_server_sends_is_what_the_worker_reads(sent):
    """Arguments survive the flat form, also through JSON."""
    assert ProcessorArgs.from_extra_args(json.loads(json.dumps(sent.to_extra_args()))) == sent


@given(processor_args)
def test_flat_form_holds_reserved_scalars_only(sent):
    """Every key is reserved, every value a string or number, as vLLM's HTTP layer demands."""
    flat = sent.to_extra_args()
    assert flat.keys() <= args.RESERVED_KEYS
    assert {type(value) for value in flat.values()} <= {int, float, str}


def test_reserved_keys_are_all_the_keys_there_are():
    """The server refuses from clients exactly what the worker would obey."""
    full = ProcessorArgs(TypicalArgs(0.5), AdsArgs(), ("a",))
    assert full.to_extra_args().keys() == args.RESERVED_KEYS
    assert len(args.RESERVED_KEYS) == len(fields(TypicalArgs)) + len(fields(AdsArgs)) + 1


def test_no_keys_no_method():
    """Foreign keys ask for nothing; missing ones of a method have its defaults."""
    assert ProcessorArgs.from_extra_args({"other": [1]}) == ProcessorArgs()
    assert ProcessorArgs.from_extra_args({"ads_beta": 0.35}) == ProcessorArgs(ads=AdsArgs(beta=0.35))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], -1, 2**64])
@pytest.mark.parametrize("key", sorted(args.RESERVED_KEYS))
def test_no_field_accepts_what_is_no_number_in_range(key, bad):
    """NaN, infinities, booleans, strings and far values are refused by the field's own name."""
    with pytest.raises(ArgumentError, match=key) as error:
        ProcessorArgs.from_extra_args({"typical_p": 0.5, key: bad})
    assert error.value.field == key


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("typical_p", [1e-9, 0.5, 1, 1.0], [0, 0.0, 1.0000001]),
        ("typical_min_p", [0, 0.05, 1], [-0.001, 1.1]),
        ("ads_subset_size", [1, 8, 32], [0, 33, 8.0]),
        ("ads_beta", [0, 0.3, 0.9], [-0.1, 0.91, 1]),
        ("ads_group", [0, 2**63 - 1], [-1, 2**63, 1.0]),
        ("ads_slot", [0, 15], [-1, 16]),
        ("ads_n", [8, 16], [0, 17]),
        ("ads_top_k", [0, 1, 50], [-1, 1.5]),
        ("ads_top_p", [0.01, 1], [0, 1.01]),
        ("ads_min_p", [0, 1], [-0.1, 1.01]),
    ],
)
def test_documented_ranges(key, inside, outside):
    """The ends of each documented range are accepted, their neighbours refused with the range named."""
    rest = {"typical_p": 0.5} | ({"ads_n": 16} if key == "ads_slot" else {})
    for value in inside:
        assert ProcessorArgs.from_extra_args(rest | {key: value}).to_extra_args()[key] == value
    for value in outside:
        with pytest.raises(ArgumentError, match=rf"{key} must be an? .*in [\[(]"):
            ProcessorArgs.from_extra_args(rest | {key: value})


def test_a_slot_is_one_of_its_siblings():
    """slot < n, else two requests could take one place."""
    with pytest.raises(ArgumentError, match="ads_slot must be below ads_n = 4"):
        AdsArgs(slot=4, siblings=4)


def test_min_p_after_typical_needs_typical():
    """A min-p that no method would apply is refused, not dropped."""
    with pytest.raises(ArgumentError, match="typical_p"):
        ProcessorArgs.from_extra_args({"typical_min_p": 0.1})


@pytest.mark.parametrize(
    ("terms", "allowed"),
    [
        (["x"] * 65, "at most 64 strings"),
        (["x", ""], "strings of 1 to 200 characters"),
        (["x" * 201], "strings of 1 to 200 characters"),
        ([1], "strings of 1 to 200 characters"),
        (["x" * 200] * 20 + ["y"], "at most 4000 characters in all"),
        (["a\ud800"], "without lone surrogates"),
        ({"a": 1}, "a JSON list of strings"),
    ],
)
def test_terms_out_of_bounds(terms, allowed):
    """Too many or too long terms are refused, as is what no text can hold, on the way in and out."""
    with pytest.raises(ArgumentError, match=f"forbidden_terms must be .*{allowed}"):
        ProcessorArgs.from_extra_args({"forbidden_terms": json.dumps(terms)})
    if isinstance(terms, list):
        with pytest.raises(ArgumentError, match=allowed):
            ProcessorArgs(forbidden_terms=tuple(terms))


def test_terms_within_bounds():
    """The limits themselves are accepted, and no terms are no key."""
    terms = ("ß" * 200,) * 20
    assert ProcessorArgs.from_extra_args(
        ProcessorArgs(forbidden_terms=terms).to_extra_args()
    ) == ProcessorArgs(forbidden_terms=terms)
    assert len(ProcessorArgs(forbidden_terms=("x",) * 64).forbidden_terms) == 64
    assert ProcessorArgs(forbidden_terms=()).to_extra_args() == {}


def test_groups_do_not_repeat():
    """Fresh groups fit the range and differ."""
    groups = {fresh_group() for _ in range(1000)}
    assert len(groups) == 1000
    assert all(AdsArgs(group=group).group == group for group in groups)


def test_importing_the_contract_is_cheap():
    """The server can read the contract without torch."""
    code = (
        "import sys, processors.args; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic', 'vllm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
