"""A word-level tokenizer for the testbed's worlds: one word, one token, ids in the vocabulary's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdkit.tasks.family import PAD, UNKNOWN


def word_tokenizer(vocabulary: Sequence[str], *, ends: Sequence[str], end: str | None = None) -> Any:
    """A Hugging Face fast tokenizer that splits at spaces and adds nothing.

    `ends` are special tokens (decoding may leave them out); `end`, by default the first, is the tokenizer's
    own end token, the others belong in a model's `generation_config.eos_token_id`.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert len(vocabulary) == len(set(vocabulary)) and PAD in vocabulary and set(ends) <= set(vocabulary)
    words = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (PAD, UNKNOWN, *ends)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=end or ends[0],
        additional_special_tokens=[word for word in ends if word != (end or ends[0])],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
