"""What all tokenizers have in common, whichever file they come from."""

import numpy as np
import pytest
from tokenizer_samples import SMOLLM_WORDS, TEXTS, train_bpe, write_gguf, write_hub, write_sentencepiece

from dasd_jax.text.prompts import encode_prompt, student_messages
from dasd_jax.text.tokenizer_files import load_tokenizer


@pytest.fixture(params=["byte", "json", "gguf", "model"])
def tokenizer(request, tmp_path):
    """The same corpus behind each of the four back-ends."""
    if request.param == "byte":
        return load_tokenizer("byte")
    if request.param == "json":
        return load_tokenizer(str(write_hub(tmp_path)))
    if request.param == "gguf":
        return load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", train_bpe(SMOLLM_WORDS))))
    return load_tokenizer(str(write_sentencepiece(tmp_path / "tokenizer.model")))


@pytest.mark.parametrize("text", TEXTS)
def test_decode_undoes_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids, np.int32)) == text
    assert all(0 <= id < tokenizer.vocab_size for id in ids)


def test_no_special_token_is_added_and_a_written_one_is_one_id(tokenizer):
    stop_id = tokenizer.stop_ids[0]
    plain = tokenizer.encode("hello 12")
    assert stop_id not in plain
    assert tokenizer.encode("hello 12" + tokenizer.eos_token) == [*plain, stop_id]
    assert tokenizer.piece(stop_id) == tokenizer.eos_token


def test_decode_skips_special_tokens_and_ids_beyond_the_vocabulary(tokenizer):
    ids = tokenizer.encode("hello")
    assert tokenizer.decode([*ids, tokenizer.stop_ids[0], tokenizer.vocab_size + 7]) == "hello"
    assert tokenizer.piece(tokenizer.vocab_size + 7)


def test_the_turns_of_a_rendered_prompt_are_closed_by_stop_ids(tokenizer):
    """Each shot ends in the id that the model has to write, however the template spells it."""
    shots = [("1 + 1?", "2"), ("2 + 2?", "4")]
    ids = encode_prompt(tokenizer, student_messages("3 + 3?", instruction="", shots=shots))
    assert sum(id in tokenizer.stop_ids for id in ids) >= len(shots)


def test_byte_tokenizer_is_the_bytes_and_three_markers():
    tokenizer = load_tokenizer("byte")
    assert tokenizer.encode("é<|im_end|>") == [0xC3, 0xA9, 258]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.stop_ids) == (259, 256, (258,))
