"""Tokenizer files: what they declare is honoured, and what cannot be read is refused in one line."""

import json
import pathlib

import pytest
import tokenizers
from tokenizer_samples import (
    CORPUS,
    SMOLLM_WORDS,
    SPECIALS,
    TEMPLATE,
    TEXTS,
    train_bpe,
    write_gguf,
    write_hub,
    write_sentencepiece,
)
from tokenizers import models, pre_tokenizers

from dasd_jax.errors import UserError
from dasd_jax.text.prompts import encode_prompt, student_messages
from dasd_jax.text.tokenizer import PLAIN_TEMPLATE
from dasd_jax.text.tokenizer_files import load_tokenizer

SMOLLM2 = pathlib.Path("~/.cache/dasd_jax/SmolLM2-135M-Instruct.Q4_1.gguf").expanduser()


# tokenizer.json


def test_every_eos_of_both_files_is_a_stop_id_and_no_undeclared_one(tmp_path):
    both = load_tokenizer(str(write_hub(tmp_path, generation={"eos_token_id": [2, 0]})))
    assert both.stop_ids == (2, 0) and both.pad_id == 0 and both.eos_token == "<|im_end|>"
    one = load_tokenizer(str(write_hub(tmp_path, generation={"eos_token_id": 2})))
    assert one.stop_ids == (2,)


def test_generation_config_alone_gives_the_stop_ids(tmp_path):
    tokenizer = load_tokenizer(str(write_hub(tmp_path, config={}, generation={"eos_token_id": 0})))
    assert (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.eos_token) == ((0,), 0, "<|endoftext|>")


EOS_FILES = {
    "tokenizer_config.json": {"eos_token": "<|im_end|>"},
    "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}},
    "generation_config.json": {"eos_token_id": [2]},
    "config.json": {"eos_token_id": 2},
}


@pytest.mark.parametrize("file", EOS_FILES)
def test_each_file_alone_gives_the_stop_ids_and_adds_to_the_others(tmp_path, file):
    folder = write_hub(tmp_path, config={})
    (folder / file).write_text(json.dumps(EOS_FILES[file]))
    assert load_tokenizer(str(folder)).stop_ids == (2,)
    other = "config.json" if file != "config.json" else "generation_config.json"
    (folder / other).write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert set(load_tokenizer(str(folder)).stop_ids) == {0, 2}
    (folder / file).write_text(json.dumps({"eos_token": 7.5, "eos_token_id": "2"}))
    assert_refused(str(folder), file, "expected")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", {"pad_token_id": 0}, 0),
        ("generation_config.json", {"pad_token_id": 1}, 1),
        ("special_tokens_map.json", {"pad_token": {"content": "<|im_start|>"}}, 1),
        ("tokenizer_config.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, 0),
        ("config.json", {"pad_token_id": -1}, None),  # as the first Llama had it
    ],
)
def test_the_pad_id_is_found_where_any_file_declares_it(tmp_path, file, content, expected):
    """Where none does, a stop id pads, which masks tell apart."""
    folder = write_hub(tmp_path, config={"eos_token": "<|im_end|>"})
    (folder / file).write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.special_ids.pad == expected
    assert tokenizer.pad_id == (2 if expected is None else expected)


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_beside_tokenizer_json_continue_its_ids(tmp_path, where):
    bpe = train_bpe(SMOLLM_WORDS)
    size = bpe.get_vocab_size()
    config = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}

    def written(id):
        decoder = {str(id): {"content": "<pad>", "special": True, "normalized": False}}
        in_config = {"added_tokens_decoder": decoder} if where == "tokenizer_config.json" else {}
        (tmp_path / "added_tokens.json").write_text(json.dumps({} if in_config else {"<pad>": id}))
        return str(write_hub(tmp_path, bpe=bpe, config=config | in_config))

    tokenizer = load_tokenizer(written(size))
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (size, size + 1)
    assert tokenizer.encode("a<pad>")[-1] == size
    assert tokenizer.decode([size]) == ""
    assert_refused(written(size + 3), "'<pad>'", str(size), str(size + 3))
    (tmp_path / "added_tokens.json").unlink()
    assert_refused(str(write_hub(tmp_path, bpe=bpe, config=config)), "'<pad>' of tokenizer_config.json is not in its")


@pytest.mark.parametrize("where", ["tokenizer.json", "added_tokens.json"])
def test_padding_that_the_model_has_no_place_for_is_left_out(tmp_path, where):
    """A tokenizer that got a padding token while the model kept its size, as many fine-tunes of Llama 2."""
    bpe = train_bpe(SMOLLM_WORDS)
    size = bpe.get_vocab_size()
    if where == "tokenizer.json":
        bpe.add_special_tokens(["[PAD]"])
    else:
        (tmp_path / where).write_text(json.dumps({"[PAD]": size}))
    folder = write_hub(tmp_path, bpe=bpe, config={"eos_token": "<|im_end|>", "pad_token": "[PAD]"})
    assert load_tokenizer(str(folder)).pad_id == size  # no config.json says that it does not fit
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.special_ids.pad) == (size, 2, None)
    assert max(tokenizer.encode("a[PAD]")) < size and tokenizer.decode(tokenizer.encode("a[PAD]")) == "a[PAD]"


def test_the_size_of_the_models_vocabulary_is_that_of_the_files_beside(tmp_path):
    folder = write_hub(tmp_path)
    assert load_tokenizer(str(folder)).model_vocab is None
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4096}))
    assert load_tokenizer(str(folder)).model_vocab == load_tokenizer(str(folder / "tokenizer.json")).model_vocab == 4096
    (folder / "config.json").unlink()
    (folder / "manifest.json").write_text(json.dumps({"architecture": {"vocab_size": 512}}))
    assert load_tokenizer(str(folder)).model_vocab == 512
    file = write_gguf(tmp_path / "tiny.gguf", train_bpe(SMOLLM_WORDS))
    assert load_tokenizer(str(file)).model_vocab == load_tokenizer(str(file)).vocab_size + 1  # with [PAD]


def test_the_file_and_its_folder_are_the_same_tokenizer(tmp_path):
    folder = write_hub(tmp_path)
    by_file, by_folder = load_tokenizer(str(folder / "tokenizer.json")), load_tokenizer(str(folder))
    assert by_file.stop_ids == by_folder.stop_ids and by_file.chat_template == by_folder.chat_template == TEMPLATE


def test_template_file_wins_over_config_then_the_named_default_then_plain(tmp_path):
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"eos_token": "<|im_end|>", "chat_template": named}
    assert load_tokenizer(str(write_hub(tmp_path, config=config))).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert load_tokenizer(str(tmp_path)).chat_template == "J"
    (tmp_path / "chat_template.jinja").unlink()
    assert load_tokenizer(str(write_hub(tmp_path, config={"eos_token": "<|im_end|>"}))).chat_template == PLAIN_TEMPLATE


def test_truncation_and_padding_saved_in_the_file_are_ignored(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    bpe.enable_truncation(4)
    bpe.enable_padding(length=64)
    tokenizer = load_tokenizer(str(write_hub(tmp_path, bpe=bpe)))
    assert tokenizer.decode(tokenizer.encode(TEXTS[1])) == TEXTS[1]
    assert 4 < len(tokenizer.encode(TEXTS[1])) < 64


# GGUF


def test_gguf_gives_the_ids_of_the_tokenizer_json_with_the_same_vocabulary(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    hub = load_tokenizer(str(write_hub(tmp_path, bpe=bpe)))
    from_gguf = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", bpe)))
    for text in [*CORPUS[:5], *TEXTS, "<|im_start|>user\n12<|im_end|><think>x"]:
        assert from_gguf.encode(text) == hub.encode(text)
    facts = ("vocab_size", "pad_id", "stop_ids", "eos_token", "chat_template")
    assert [getattr(from_gguf, name) for name in facts] == [getattr(hub, name) for name in facts]
    assert from_gguf.decode(from_gguf.encode("<think>x<|im_end|>")) == "<think>x"  # user-defined text is content


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", " 1234", "!", "\n", "\n", "x", "'s"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "!", "\n", "\n", "x", "'s"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "!\n\n", "x", "'s"]),
        ("llama-bpe", ["a", " ", "123", "4", "!\n\n", "x", "'s"]),
    ],
)
def test_pre_tokenizers_keep_words_and_digits_apart(tmp_path, pre, expected):
    """A vocabulary that can merge everything shows where the pre-tokenizer forbids it."""
    bpe = merge_all(["Ġ1234", "1234", "123", "!ĊĊ", "!Ċ", "x's", "'s"])
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", bpe, pre=pre)))
    assert [tokenizer.piece(id) for id in tokenizer.encode("a 1234!\n\nx's")] == expected


def merge_all(words: list[str]) -> tokenizers.Tokenizer:
    """A BPE over bytes that builds each of `words` (in byte-level spelling) from the left."""
    vocab = {token: i for i, token in enumerate(SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(pair)
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.add_special_tokens(SPECIALS)
    return bpe


def test_gguf_end_of_turn_is_a_stop_id_beside_end_of_text(tmp_path):
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf", train_bpe(SMOLLM_WORDS), eos=0, eot=2)))
    assert (tokenizer.stop_ids, tokenizer.bos_token) == ((0, 2), "<|im_start|>")


def test_qwen2_composes_characters_and_llama_looks_words_up_first(tmp_path):
    """As their tokenizer.json files do."""
    bpe = merge_all(["Ã©"])  # é, composed
    qwen = load_tokenizer(str(write_gguf(tmp_path / "qwen.gguf", bpe, pre="qwen2")))
    assert len(qwen.encode("e\u0301")) == 1
    vocab = bpe.get_vocab()
    vocab |= {"bc": len(vocab), "abc": len(vocab) + 1}  # no merge leads to abc
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c")]))
    bpe.add_special_tokens(SPECIALS)
    llama = load_tokenizer(str(write_gguf(tmp_path / "llama.gguf", bpe, pre="llama-bpe")))
    assert len(llama.encode("abc")) == 1


@pytest.mark.skipif(not SMOLLM2.exists(), reason="the SmolLM2 GGUF is not in the cache")
def test_smollm2_as_it_was_published():
    tokenizer = load_tokenizer(str(SMOLLM2))
    assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.eos_token) == (49_152, (2,), "<|im_end|>")
    assert [tokenizer.piece(id) for id in tokenizer.encode("1234")] == ["1", "2", "3", "4"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = encode_prompt(tokenizer, student_messages("What is 2 + 3?", instruction=""))
    assert ids[:3] == [1, 9690, 198]  # <|im_start|> system \n: the template's own system turn
    assert ids[-4:] == [1, 520, 9531, 198]  # <|im_start|> ass istant \n


# SentencePiece


def test_sentencepiece_puts_its_space_once_and_markers_become_ids(tmp_path):
    tokenizer = load_tokenizer(str(write_sentencepiece(tmp_path / "m.model", user_defined_symbols=["<sep>"])))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.stop_ids, tokenizer.pad_id) == ("<s>", "</s>", (2,), 2)
    ids = tokenizer.encode("<s>hello</s>hello<sep>")
    assert ids[0] == 1 and ids.count(2) == 1 and tokenizer.piece(ids[-1]) == "<sep>"
    assert "".join(tokenizer.piece(id) for id in ids) == "<s> hello</s>hello<sep>"
    assert tokenizer.encode("hello") == ids[1 : ids.index(2)]


def test_sentencepiece_has_the_ids_and_the_template_of_the_files_beside(tmp_path):
    file = write_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 5], "vocab_size": 400, "pad_token_id": -1}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "pad_token": "<pad>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 330}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.model_vocab) == ((2, 5), 2, 400)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.vocab_size == 330
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 330, "<|im_end|>": 331}))
    assert_refused(str(file), "'<|im_end|>'", "tokenizer.json")


def test_sentencepiece_pad_piece_is_used_where_there_is_one(tmp_path):
    assert load_tokenizer(str(write_sentencepiece(tmp_path / "m.model", pad_id=3))).pad_id == 3


# What a person can get wrong


@pytest.mark.parametrize("name", ["nothing.json", "nothing.gguf", "nothing.model", "folder", "README.md", ""])
def test_what_is_missing_or_of_another_kind_is_one_clear_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "README.md").write_text("no tokenizer")
    assert_refused(str(tmp_path / name), "expected 'byte'")


@pytest.mark.parametrize("suffix", [".json", ".gguf", ".model"])
@pytest.mark.parametrize("content", [b"", b"{]", b"GGUF\x03\x00\x00\x00", bytes(range(256)) * 8])
def test_damaged_files_are_one_clear_line(tmp_path, suffix, content):
    file = tmp_path / f"tokenizer{suffix}"
    file.write_bytes(content)
    assert_refused(str(file), f"expected a readable {suffix}")


def test_truncated_files_are_one_clear_line(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    files = [
        write_gguf(tmp_path / "t.gguf", bpe),
        write_hub(tmp_path, bpe=bpe) / "tokenizer.json",
        write_sentencepiece(tmp_path / "t.model"),
    ]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert_refused(str(file), "expected a readable")


def test_unsupported_gguf_tokenizers_are_named_with_those_supported(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    assert_refused(str(write_gguf(tmp_path / "a.gguf", bpe, pre="tekken")), "'tekken'", "'qwen2'", "'smollm'")
    assert_refused(str(write_gguf(tmp_path / "b.gguf", bpe, model="llama")), "'llama'", "'gpt2'")


def test_a_tokenizer_without_a_usable_stop_id_is_refused(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    assert_refused(str(write_gguf(tmp_path / "a.gguf", bpe, eos=None)), "no eos token")
    assert_refused(str(write_sentencepiece(tmp_path / "a.model", eos_id=-1)), "no eos piece")
    assert_refused(str(write_hub(tmp_path, bpe=bpe, config={})), "no eos token")
    assert_refused(str(write_hub(tmp_path, bpe=bpe, config={"eos_token": "<nope>"})), "'<nope>'")
    assert_refused(str(write_hub(tmp_path, bpe=bpe, generation={"eos_token_id": 99_999})), "99999")


def test_damaged_neighbours_are_named(tmp_path):
    write_hub(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    assert_refused(str(tmp_path), "generation_config.json is damaged")


def assert_refused(path: str, *fragments: str):
    with pytest.raises(UserError) as refusal:
        load_tokenizer(path)
    line = str(refusal.value)
    assert "\n" not in line and line.startswith(f"model.tokenizer={path!r}: ")
    assert all(fragment in line for fragment in fragments), line
