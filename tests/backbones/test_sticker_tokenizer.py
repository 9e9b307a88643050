"""The sticker backbone's tokenizer: CLIP's format, one token a word, `sks` a word like any other."""

import pytest
from transformers import CLIPTokenizer

from bat_ui.backbones.sticker.tokenizer import CONTEXT_LENGTH, build_tokenizer
from bat_ui.backbones.sticker.train_clip import kept_tokenizer, tokenize

TEXTS = ["a flat sticker of cat with tears of joy", "an outlined sticker of desk", "books and masks"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS)


@pytest.mark.parametrize("word", sorted({w for t in TEXTS for w in t.split()} | {"sks"}))
def test_every_caption_word_and_the_identifier_is_one_token(tokenizer, word):
    assert tokenizer.tokenize(word) == [word + "</w>"]


def test_any_other_text_is_spelled_out_and_comes_back(tokenizer):
    text = "zebra & ÿ"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).strip() == text


def test_text_is_framed_and_padded_as_clip_does(tokenizer):
    row = tokenize(tokenizer, ["sks"])[0].tolist()
    end = len(tokenizer) - 1  # the highest id, which open_clip's pooling looks for
    assert len(row) == CONTEXT_LENGTH and row[0] == end - 1 and row[2:] == [end] * (CONTEXT_LENGTH - 2)


def test_saved_and_loaded_it_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert [loaded(t).input_ids for t in TEXTS] == [tokenizer(t).input_ids for t in TEXTS]


def test_a_stage_keeps_the_tokenizer_that_it_began_with(tmp_path):
    first = kept_tokenizer(tmp_path / "tokenizer", ["a flat sticker of cat"])
    again = kept_tokenizer(tmp_path / "tokenizer", ["a flat sticker of dog"])
    assert again("a flat sticker of cat").input_ids == first("a flat sticker of cat").input_ids
    assert len(again) == len(first)
