import importlib.util
import json
import random
import shutil
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from processors.forbidden import ROOT, Automaton, pattern
from processors.vocabulary import Vocabulary, token_texts

_spec = importlib.util.spec_from_file_location(
    "terms_reference", Path(__file__).with_name("terms_reference.py")
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)
contains, contains_any, fold = reference.contains, reference.contains_any, reference.fold

CORPUS = [
    "Kill the king, KILL! The killer kills; skills, Kilo, killing. A secret plan, Secret Plan, top SECRET.",
    "Straße STRASSE Strasse strasse, Fuß FUSS. İstanbul istanbul ISTANBUL ıstanbul. ΟΔΟΣ οδός οδοσ Ὀδυσσεύς",
    "naïve café CAFÉ Café résumé RÉSUMÉ über ÜBER, ﬁn oﬃce office OFFICE; Москва МОСКВА москва",
    "日本語 한국어 🙂🙃 ½ 42",
] * 20
LETTERS = "aAbBiIsSkKßẞıİſ\u212aéÉe\u0301\u0307σςΣﬁfF \n한日🙂."
SPECIAL = "<|end|>"


def byte_level(size=600):
    """A byte-level BPE tokenizer trained on the corpus, with a special and an added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL)
    fast.add_tokens(["<Kill>", "  über  "])
    return fast


def byte_fallback(size=500):
    """A tokenizer of SentencePiece's kind: ▁ for spaces, and the bytes as tokens of their own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, limit_alphabet=90
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The trainer knows them as special only; in such a vocabulary the bytes are ordinary tokens.
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [t for t in parts["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL, unk_token="<unk>")


TOKENIZERS = {"byte-level": byte_level(), "byte fallback": byte_fallback()}
VOCABULARIES = {name: Vocabulary(token_texts(t, len(t) + 3)) for name, t in TOKENIZERS.items()}
BYTES = Vocabulary([bytes([byte]) for byte in range(256)])


def text_of(vocabulary, tokens):
    return b"".join(vocabulary[token] for token in tokens).decode(errors="replace")


def reached(automaton, vocabulary, text):
    """The state after `text`, byte by byte, and whether some term was completed on the way."""
    state, completed = ROOT, False
    for byte in text.encode():
        state = automaton.advance(state, byte)
        completed |= automaton.completes(state)
    return state, completed


def occurs(text, *terms):
    return reached(Automaton(terms, BYTES), BYTES, text)[1]


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("he KILLs", "kill"),
        ("STRASSE", "Straße"),
        ("straße", "STRASSE"),
        ("STRAẞE", "strasse"),
        ("İSTANBUL", "istanbul"),
        ("İstanbul".lower(), "istanbul"),
        ("istanbul", "İSTANBUL"),
        ("istanbul", "İSTANBUL".lower()),
        ("ISTANBUL", "ıstanbul"),
        ("ΟΔΟΣ", "οδός".replace("ό", "ο")),
        ("οδος", "ΟΔΟΣ"),
        ("οδοσ", "οδος"),
        ("ΟΔΌΣ", "οδός"),
        ("CAFÉ", "café"),
        ("cafe\u0301", "CAFÉ"),
        ("CAFÉ", "cafe\u0301"),
        ("oﬃce", "OFFICE"),
        ("oﬃce", "off"),
        ("\u212aelvin", "kelvin"),
        ("МОСКВА", "москва"),
        ("ᾳ", "ΑΙ"),
        ("Ǆ ǅ ǆ", "ǆ ǆ ǆ"),
        ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8"),
        ("a b", " B"),
        ("🙂", "🙂"),
    ],
)
def test_a_term_is_found_in_any_case(text, term):
    """However the text writes it, in the middle of other text too; the definition says the same."""
    assert contains(text, term)
    assert occurs(text, term)
    assert occurs(f"x{text}y", term)


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("kil l", "kill"),
        ("cafe", "café"),
        ("résumé", "resume"),
        ("한", "하"),
        ("strase", "straße"),
        ("", "a"),
    ],
)
def test_what_is_another_text_is_not_found(text, term):
    """Accents count, also where they are characters of their own."""
    assert not contains(text, term)
    assert not occurs(text, term)


@given(
    st.text(LETTERS, max_size=12), st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4)
)
@example("ße", ["se"])
@example("iṡ", ["S\u0307"])
@example("aSßs", ["sss"])
@example("i\u0307\u0307a", ["İa"])
def test_the_automaton_finds_what_the_definition_finds(text, terms):
    """A text completes a term, somewhere, exactly where a part of it is the term."""
    assert occurs(text, *terms) == contains_any(text, terms)


@given(st.text(max_size=8), st.text(min_size=1, max_size=3), st.text(max_size=3))
def test_common_judges_agree(before, term, after):
    """Whatever a comparison of lower, upper or folded text calls an occurrence is one."""
    for written in (term, term.lower(), term.upper(), term.casefold(), term.title()):
        text = before + written + after
        if any(way(term) in way(text) for way in (str.lower, str.upper, str.casefold)):
            assert occurs(text, term), (text, term)


def test_every_character_is_found_in_every_case():
    """No character of Unicode has a lower, upper, title or folded form that escapes its own term."""
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        forms = {character.lower(), character.upper(), character.title(), character.casefold()}
        assert {pattern(form) for form in forms} == {pattern(character)}, character
        if fold(character) != character or unicodedata.normalize("NFD", character) != character:
            assert code < 0x30000, "the automaton's tables end there"


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=25)
@given(
    terms=st.lists(
        st.text(LETTERS, min_size=1, max_size=4)
        | st.sampled_from(
            ["kill", "secret plan", "Straße", "istanbul", "café", " k", "οδος", "日本", "🙂", "ﬁn"]
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
)
def test_a_walk_over_unbanned_tokens_never_writes_a_term(name, terms, seed):
    """A token is banned exactly where it would complete a term, however the text before was split; so a text
    without banned tokens holds none."""
    pick, vocabulary = random.Random(seed), VOCABULARIES[name]
    automaton = Automaton(terms, vocabulary)
    # Texts near the terms: all tokens of their letters, and some of the others.
    letters = set("".join(terms).lower().encode() + "".join(terms).upper().encode())
    near = [token for token in range(len(vocabulary)) if letters.intersection(vocabulary[token])]
    state, tokens = ROOT, []
    for _ in range(8):
        banned = set(automaton.banned(state).tolist())
        asked = {*pick.sample(near, min(60, len(near))), *pick.sample(range(len(vocabulary)), 20)}
        asked |= set(pick.sample(sorted(banned), min(20, len(banned))))
        before = b"".join(vocabulary[token] for token in tokens)[-40:]
        for token in asked:
            text = (before + vocabulary[token]).decode(errors="replace")
            assert (token in banned) == (bool(vocabulary[token]) and contains_any(text, terms)), (text, token)
        free = [token for token in asked if token not in banned]
        if not free:
            break
        tokens.append(pick.choice(free))
        state = automaton.advance(state, tokens[-1])
        assert not automaton.completes(state)
    assert not contains_any(text_of(vocabulary, tokens), terms)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_bytes_of_tokens_are_what_decoding_writes(name):
    """Whatever tokens follow one another, their bytes are the decoded text, but for a space at its start."""
    tokenizer, vocabulary = TOKENIZERS[name], VOCABULARIES[name]
    pick = random.Random(0)
    plain = [t for t in range(len(tokenizer)) if t not in tokenizer.added_tokens_decoder]
    for _ in range(300):
        tokens = pick.choices(plain, k=pick.randint(1, 12))
        decoded = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text_of(vocabulary, tokens)
        if "\ufffd" in decoded:  # each of them has its own way with bytes that are no characters
            assert all(part in text for part in decoded.split("\ufffd"))
        else:
            assert decoded in (text, text.removeprefix(" "))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_special_and_unused_tokens_have_no_text(name):
    """They are never banned, and a term goes on behind them as it does in the text that leaves them out."""
    tokenizer, vocabulary = TOKENIZERS[name], VOCABULARIES[name]
    end = tokenizer.convert_tokens_to_ids(SPECIAL)
    assert vocabulary[end] == b""
    assert [vocabulary[token] for token in range(len(tokenizer), len(vocabulary))] == [b""] * 3
    automaton = Automaton([SPECIAL, "<", "e", "n", "d", "|"], vocabulary)
    assert end not in automaton.banned(ROOT)
    state = automaton.advance(ROOT, tokenizer.convert_tokens_to_ids("K"))
    assert automaton.advance(state, end) == state


def test_added_tokens_stand_as_they_are():
    """The text of an added token is not read in the alphabet of the byte-level ones."""
    tokenizer, vocabulary = TOKENIZERS["byte-level"], VOCABULARIES["byte-level"]
    assert vocabulary[tokenizer.convert_tokens_to_ids("<Kill>")] == b"<Kill>"
    assert vocabulary[tokenizer.convert_tokens_to_ids("  über  ")] == "  über  ".encode()
    assert tokenizer.convert_tokens_to_ids("<Kill>") in Automaton(["KILL"], vocabulary).banned(ROOT)


@pytest.mark.parametrize("file", ["tekken_240911.json", "tokenizer.model.v1"])
def test_mistrals_own_tokenizers(tmp_path, file):
    """vLLM's class around them gives the bytes of every token, parts of characters among them."""
    mistral = pytest.importorskip("vllm.tokenizers.mistral")
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    name = "tekken.json" if file.startswith("tekken") else file
    shutil.copy(data / file, tmp_path / name)
    tokenizer = mistral.MistralTokenizer.from_pretrained(str(tmp_path))
    size = len(tokenizer.vocab)
    texts = token_texts(tokenizer, size + 2)
    text = "Straße 日本 🙃 naïve  killing"
    assert b"".join(texts[token] for token in tokenizer.encode(text)).decode().lstrip() == text
    assert texts[size:] == [b""] * 2
    assert {texts[token] for token in tokenizer.all_special_ids} == {b""}
    banned = Automaton(["KILL"], Vocabulary(texts)).banned(ROOT)
    assert {texts[token].lower() for token in banned} >= {b" kill", b" killed"}


def test_a_leading_space_that_decoding_drops_opens_no_hole():
    """A term that begins with a space is banned at the start of a text too, one without it as anywhere."""
    tokenizer, vocabulary = TOKENIZERS["byte fallback"], VOCABULARIES["byte fallback"]
    token = next(t for t in range(len(tokenizer)) if vocabulary[t].startswith(b" k"))
    assert tokenizer.decode([token]) == vocabulary[token].decode()[1:]
    assert token in Automaton([" K"], vocabulary).banned(ROOT)
    assert token in Automaton(["k"], vocabulary).banned(ROOT)


def test_a_term_split_inside_a_character():
    """The last byte of a character is banned where it completes the term, and only there."""
    automaton = Automaton(["né"], BYTES)
    state = ROOT
    for byte in "ne\u0301".encode()[:-1]:
        assert byte not in automaton.banned(state)
        state = automaton.advance(state, byte)
    assert automaton.banned(state).tolist() == [0x81]
    state = automaton.advance(automaton.advance(ROOT, ord("N")), "É".encode()[0])
    assert sorted(automaton.banned(state).tolist()) == sorted(["É".encode()[1], "é".encode()[1]])
    assert automaton.advance(state, ord("a")) == ROOT


def test_overlapping_terms_each_count():
    """A term inside, before or behind another is found, whatever the other one has come to."""
    terms = ["abab", "bac", "ba b"]
    for text, ends in (("aabab", True), ("ababac", True), ("abac", True), ("aba b", True), ("abaab", False)):
        assert occurs(text, *terms) is ends is contains_any(text, terms), text


def test_a_text_goes_on_after_a_term():
    """Where a ban had to yield, the next occurrence is banned like the first."""
    automaton = Automaton(["aba"], BYTES)
    state = ROOT
    for byte in b"aba":
        state = automaton.advance(state, byte)
    assert automaton.completes(state)
    state = automaton.advance(state, ord("b"))
    assert not automaton.completes(state)
    assert sorted(automaton.banned(state).tolist()) == [ord("A"), ord("a")]


def test_states_are_shared_and_few():
    """Texts that end alike, whatever came before, are in one state: their bans are worked out once."""
    automaton = Automaton(["secret plan", "secretary"], BYTES)
    ends = [
        reached(automaton, BYTES, text)[0] for text in ("secret", "my SECRET", "a secretsecret", "SeCrEt")
    ]
    assert len(set(ends)) == 1
    assert reached(automaton, BYTES, "plan")[0] == reached(automaton, BYTES, "xyz plan")[0]


def test_long_tokens_are_read_to_their_end():
    """A term at the very end of a token of any length is found, and one begun there goes on."""
    vocabulary = Vocabulary([b"x" * 5000 + b"kill", b"x" * 300 + b"ki", b"ll", b"l", b""])
    automaton = Automaton(["KILL"], vocabulary)
    assert automaton.banned(ROOT).tolist() == [0]
    state = automaton.advance(ROOT, 1)
    assert sorted(automaton.banned(state).tolist()) == [0, 2]
    assert sorted(automaton.banned(automaton.advance(state, 3)).tolist()) == [0, 2, 3]


def test_a_vocabulary_without_text():
    """Nothing can be banned, and nothing fails."""
    automaton = Automaton(["a"], Vocabulary([b"", b""]))
    assert automaton.banned(automaton.advance(ROOT, 1)).size == 0


def test_tokens_lie_by_their_first_byte():
    """The vocabulary's layout finds every token by its first byte, and its text."""
    vocabulary = VOCABULARIES["byte-level"]
    for byte, (low, high) in enumerate(pairwise(vocabulary.first.tolist())):
        ids = vocabulary.ids[low:high]
        assert [vocabulary[token][0] for token in ids] == [byte] * len(ids)
    assert sorted(vocabulary.ids) == [token for token in range(len(vocabulary)) if vocabulary[token]]
    last = np.flatnonzero(vocabulary.ends)
    for token, begin, end in zip(vocabulary.ids, vocabulary.begin, last, strict=True):
        assert vocabulary.text[begin : end + 1].tobytes() == vocabulary[token]
