"""What all tokenizers have in common, whichever file they come from."""

import json

import numpy as np
import pytest
from tokenizer_samples import SMOLLM_WORDS, TEXTS, train_bpe, write_gguf, write_hub, write_sentencepiece
from tokenizers import AddedToken

from dasd_jax.run.evaluation import texts_of
from dasd_jax.text.prompts import encode_prompt, encode_response, student_messages
from dasd_jax.text.spans import spelled
from dasd_jax.text.tokenizer_files import load_tokenizer
from dasd_jax.verify.extract import extract_answer


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


def odd_hub(folder):
    """Its stop token is not declared as special, and the marks of thoughts are."""
    bpe = train_bpe(SMOLLM_WORDS)
    bpe.add_tokens(["<end>"])
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<think>", "</think>")])
    return load_tokenizer(str(write_hub(folder, config={"eos_token": "<end>"}, bpe=bpe)))


def odd_pieces(folder):
    """The same in a SentencePiece model, with a stop token that only a file beside it names."""
    marks = {"control_symbols": ["<think>", "</think>"], "user_defined_symbols": ["<end>"]}
    write_sentencepiece(folder / "tokenizer.model", **marks)
    [stop] = load_tokenizer(str(folder)).encode("<end>")[-1:]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    return load_tokenizer(str(folder))


@pytest.fixture(params=[odd_hub, odd_pieces])
def odd(request, tmp_path):
    tokenizer = request.param(tmp_path)
    assert "<end>" in tokenizer.control and tokenizer.encode("<end>")[-1] in tokenizer.stop_ids
    return tokenizer


def written(tokenizer, text):
    """The ids of a response that ends in <end>."""
    return np.array([*tokenizer.encode(text), tokenizer.encode("<end>")[-1]])


def answers(tokenizer, prompt, *responses):
    """The extracted answers of responses, padded to one width."""
    rows = [written(tokenizer, text) for text in responses]
    ids, mask = np.zeros((len(rows), 80), int), np.zeros((len(rows), 80), bool)
    for row, response in enumerate(rows):
        ids[row, : len(response)], mask[row, : len(response)] = response, True
    return list(map(extract_answer, texts_of(tokenizer, np.array(tokenizer.encode(prompt)), ids, mask)))


def test_a_stop_token_ends_a_response_without_being_text_of_it(odd):
    for text in ("Answer: 5", "der Fluß 河", ""):
        assert odd.decode(written(odd, text)) == text
    assert answers(odd, "What?", "Answer: 5", "\\boxed{7}") == ["5", "7"]
    # Of a prompt that holds it, nothing is lost.
    assert spelled(odd, odd.encode("a<end>b<end>")) == "a<end>b<end>"


def test_thoughts_are_told_from_answers_where_their_marks_are_declared_as_special(odd):
    for text in ("<think>hm 5</think>\n\nAnswer: 6", "hm</think> 7", "<think>", "a <think> b</think></think> c"):
        assert odd.decode(odd.encode(text)) == text == spelled(odd, odd.encode(text))
    responses = "<think>Answer: 5", "<think>Answer: 5</think>Answer: 6", "Answer: 5"
    assert answers(odd, "What?", *responses) == [None, "6", "5"]
    assert answers(odd, "What?<think>\n", "Answer: 5", "Answer: 5</think> Answer: 6") == [None, "6"]


def test_the_marks_of_thoughts_in_a_target_are_those_that_a_model_writes(odd):
    end = odd.encode("</think>")[-1]
    assert odd.piece(end) == "</think>" and "</think>" not in odd.control
    assert encode_response(odd, "hm</think>7").count(end) == 1
    assert encode_response(odd, "hm</think>7<end>").count(end) == 1
