"""What each token adds to the text, in bytes, laid out for looking at all tokens at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Vocabulary:
    """Tokens with text, ordered by its first byte. Special tokens have none.

    `ids` int64 [T]; `text` uint8 holds their texts one after another, that of the token in place t from
    `begin[t]` on, and `ends` marks the last byte of each. Those whose text begins with byte b are in places
    `first[b]` to `first[b + 1]`.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts
        order = sorted((token for token, text in enumerate(texts) if text), key=lambda token: texts[token][0])
        end = np.array([len(texts[token]) for token in order], np.int64).cumsum()
        self.ids: Ints = np.array(order, np.int64)
        self.text = np.frombuffer(b"".join(texts[token] for token in order), np.uint8)
        self.begin: Ints = np.concatenate([end[:0], [0], end[:-1]])[: len(order)]
        self.ends = np.zeros(self.text.size, np.bool_)
        self.ends[end - 1] = True
        self.first: Ints = np.searchsorted(self.text[self.begin], np.arange(257)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, token: int) -> bytes:
        return self._texts[token]


def token_texts(tokenizer: Any, size: int) -> list[bytes]:
    """The bytes that each of `size` tokens adds to a text, empty for special and unused ones.

    A leading space is kept, though some tokenizers drop it where a text begins: there the bytes are more than
    the text, never less.
    """
    pieces = _mistral(tokenizer) if hasattr(tokenizer, "is_tekken") else _hugging_face(tokenizer, size)
    texts = [*pieces[:size], *[b""] * (size - len(pieces))]
    for token in tokenizer.all_special_ids:
        if token < size:
            texts[token] = b""
    return texts


def _hugging_face(tokenizer: Any, size: int) -> list[bytes]:
    from xgrammar import TokenizerInfo, VocabType  # noqa: PLC0415  # it brings transformers

    try:
        info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    except ValueError:  # a class that it does not know: the pieces still show their alphabet
        pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
        kind = TokenizerInfo._detect_vocab_type_from_vocab(tokenizer.get_vocab())  # noqa: SLF001
        info = TokenizerInfo([pieces.get(token, "") for token in range(size)], kind or VocabType.RAW)
    texts = list(info.decoded_vocab)
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token >= size:
            continue
        if added.special:
            texts[token] = b""
        elif tokenizer.decode([token]).strip() == added.content.strip():
            # They stand as they are, not in the alphabet of the others, unless decoding takes them for that.
            texts[token] = added.content.encode()
    return texts


def _mistral(tokenizer: Any) -> list[bytes]:
    """vLLM's class around Mistral's own tokenizers."""
    from xgrammar import TokenizerInfo, VocabType  # noqa: PLC0415

    if tokenizer.is_tekken:  # as strings, parts of characters would look alike
        return [tokenizer.tokenizer.id_to_byte_piece(token) for token in range(len(tokenizer.vocab))]
    return list(TokenizerInfo(tokenizer.vocab, VocabType.BYTE_FALLBACK).decoded_vocab)
