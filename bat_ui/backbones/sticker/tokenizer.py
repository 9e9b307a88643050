"""The sticker backbone's CLIP tokenizer: byte-level BPE in CLIP's own format, with every caption word one token.

In: caption texts.  Out: a `transformers.CLIPTokenizer`; any other text falls back to shorter pieces and bytes.
The identifier `sks` is a single token that no caption contains, so its embedding is untouched by pre-training.
"""

from __future__ import annotations

import json

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

CONTEXT_LENGTH = 24  # tokens, start and end included
IDENTIFIER = "sks"
END_OF_WORD = "</w>"


def build_tokenizer(texts: list[str], max_vocabulary: int = 8000) -> CLIPTokenizer:
    """Learn merges from `texts` until each word is one token, then add the merges that make IDENTIFIER one token."""
    blank = CLIPTokenizer(vocab=_vocabulary([]), merges=[])
    trainer = BpeTrainer(
        vocab_size=max_vocabulary,
        show_progress=False,
        end_of_word_suffix=END_OF_WORD,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner = CLIPTokenizer(vocab=_vocabulary([]), merges=[]).backend_tokenizer
    learner.train_from_iterator((blank.backend_tokenizer.normalizer.normalize_str(t) for t in texts), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = _tokenizer(merges).tokenize(IDENTIFIER)
    while len(pieces) > 1:
        merges.append((pieces[0], pieces[1]))
        pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return _tokenizer(merges)


def _tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_vocabulary(merges), merges=merges, model_max_length=CONTEXT_LENGTH)


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's order: bytes, bytes that end a word, merges, then start and end of text (the end has the highest id)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + END_OF_WORD for letter in letters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}
