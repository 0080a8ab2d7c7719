"""Where tokens lie in their text: in code points, whatever bytes they are of."""

import numpy as np
import pytest
from tokenizer_samples import TEXTS, write_hub

from dasd_jax.text.spans import offsets, spelled
from dasd_jax.text.tokenizer import ByteTokenizer
from dasd_jax.text.tokenizer_files import load_tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return [ByteTokenizer(), load_tokenizer(str(folder))]


LONG = "So 3 × 4 = 12, naïve 𝔸 — wait… 你好 🙂🏽 " * 20


def spans(tokenizer, ids, text, start=0):
    places = offsets(tokenizer, ids, text, start)
    assert len(places) == len(ids) + 1 and places == sorted(places)
    assert places[0] == start or not ids and places[0] == len(text)
    assert places[-1] == len(text)
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


@pytest.mark.parametrize("text", [*TEXTS, LONG, ""])
def test_the_pieces_make_up_the_text_and_each_begins_where_it_is_decoded(text, tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        decoded = tokenizer.decode(ids)
        pieces = spans(tokenizer, ids, decoded)
        assert "".join(pieces) == decoded
        for i in range(0, len(ids), 7):
            assert "".join(pieces[:i]) == tokenizer.decode(ids[:i]).rstrip("\ufffd")


def test_special_tokens_have_no_text_and_a_character_belongs_to_its_last_byte():
    tokenizer = ByteTokenizer()
    ids = [*"é".encode(), 258, ord("b")]
    assert spans(tokenizer, ids, "éb") == ["", "é", "", "b"]
    assert spans(tokenizer, ids, "<think>éb", start=7) == ["", "é", "", "b"]


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_are_no_characters_still_have_places_in_order(seed):
    tokenizer = ByteTokenizer()
    ids = np.random.default_rng(seed).integers(0, 259, 200).tolist()
    assert "".join(spans(tokenizer, ids, tokenizer.decode(ids))) == tokenizer.decode(ids)


def test_a_prompt_is_spelled_with_its_special_tokens(tokenizers):
    text = "<|im_start|>user\nWhat is 你 + 2?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = ByteTokenizer()
    assert spelled(tokenizer, tokenizer.encode(text)) == text
