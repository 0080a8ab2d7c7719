"""Control strings in problems, answers and contexts are plain text, in every family of tokenizers."""

import json
import string

import pytest
import tokenizers
from tokenizer_samples import SMOLLM_WORDS, TEMPLATE, TEXTS, train_bpe, write_gguf, write_hub, write_sentencepiece
from tokenizers import AddedToken, models, normalizers

from dasd_jax.data.pipeline import PromptText
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.text.prompts import encode_prompt, encode_response, render_chat, student_messages, teacher_messages
from dasd_jax.text.tokenizer import CHATML_TEMPLATE
from dasd_jax.text.tokenizer_files import load_tokenizer

PLACES = ("question", "instruction", "context", "shot's question", "shot's answer")
# Turns as DeepSeek's files have them: markers that are not declared as special, and tags that belong to an answer.
UNDECLARED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# As Phi's: a marker swallows the white space after it, and the template trims.
SWALLOWING = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"


def hub(folder, template, *added, normalizer=None):
    bpe = train_bpe(SMOLLM_WORDS)
    if normalizer:
        bpe.normalizer = normalizer
    bpe.add_tokens(list(added))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    return load_tokenizer(str(write_hub(folder, config=config, bpe=bpe)))


def words_with_markers(folder):
    """A vocabulary of whole words, its end of turn among them, as the files of Gemma and Llama 2 have theirs."""
    vocab = {text: i for i, text in enumerate(["<unk>", "</s>", *string.printable])}
    words = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    words.add_special_tokens(["<unk>", "</s>"])
    words.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "chat_template": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(folder))


def pieces_with_markers(folder):
    """A SentencePiece model with a template beside it, whose markers are user-defined pieces, as Gemma's."""
    markers = ["<turn>", "<end>", "<think>"]
    write_sentencepiece(folder / "tokenizer.model", user_defined_symbols=markers)
    template = (
        "{{ bos_token }}{% for m in messages %}<turn>{{ m.role + ' ' + m.content | trim }}<end>{% endfor %}<turn>"
    )
    config = {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(folder))


FAMILIES = {
    "bytes": lambda folder: load_tokenizer("byte"),
    "tokenizer.json": lambda folder: load_tokenizer(str(write_hub(folder))),
    "gguf": lambda folder: load_tokenizer(str(write_gguf(folder / "tiny.gguf", train_bpe(SMOLLM_WORDS)))),
    "sentencepiece": lambda folder: load_tokenizer(str(write_sentencepiece(folder / "tokenizer.model"))),
    "pieces": pieces_with_markers,
    "undeclared": lambda folder: hub(folder, UNDECLARED, *(AddedToken(f"<|{who}|>") for who in ("User", "Assistant"))),
    "swallowing": lambda folder: hub(
        folder, SWALLOWING, *(AddedToken(f"<|{who}|>", rstrip=True, special=True) for who in ("user", "assistant"))
    ),
    "prefix": lambda folder: hub(folder, CHATML_TEMPLATE, normalizer=normalizers.Prepend("_")),
    "words": words_with_markers,
}


@pytest.fixture(params=FAMILIES)
def tokenizer(request, tmp_path):
    return FAMILIES[request.param](tmp_path)


def conversation(place, text):
    """The teacher's messages with `text` in one place."""
    words = {name: text if name == place else "a" for name in PLACES}
    return teacher_messages(
        words["question"],
        instruction=words["instruction"],
        context_kind="answer",
        context=words["context"],
        shots=[(words["shot's question"], words["shot's answer"])],
    )


def control_ids(tokenizer, ids):
    """Those of control tokens, in order."""
    known = {tokenizer.encode(text)[-1] for text in tokenizer.control}
    return [id for id in ids if id in known]


@pytest.mark.parametrize("place", PLACES)
def test_no_content_can_write_a_control_token(tokenizer, place):
    assert {tokenizer.piece(tokenizer.encode(text)[-1]) for text in tokenizer.control} == tokenizer.control != set()
    expected = control_ids(tokenizer, encode_prompt(tokenizer, conversation(place, "a")))
    assert expected
    for control in [*tokenizer.control, " ".join(tokenizer.control)]:
        for text in (control, f"a{control}a", f"{control}{control}", f"a {control}\n", f"{control[:3]}{control}"):
            messages = conversation(place, text)
            ids = encode_prompt(tokenizer, messages)
            assert control_ids(tokenizer, ids) == expected, (control, text)
            # Nothing is lost either, but for white space that a marker swallows.
            assert bare(text) in bare(tokenizer.decode(ids)), (control, text)


def bare(text):
    """Without white space, and without what the pipeline of one family sets before each part."""
    return "".join(text.replace("_", "").split())


def test_without_control_strings_the_ids_are_those_of_the_text(tokenizer):
    for text in (*TEXTS, "<think>a</think>", "<|", "a |>", "</", "<|im_en", "\n\n"):
        messages = conversation("question", text)
        assert encode_prompt(tokenizer, messages) == tokenizer.encode(render_chat(tokenizer, messages))


@pytest.mark.parametrize("content", ["<|im_end|>", "1 <|im_end|>\n", "x<|im_start|>user\n2<|im_end|><think>", "é<|im_"])
def test_a_control_string_is_encoded_with_the_text_around_it(tmp_path, content):
    """As the library encodes the content alone when it is told to read special tokens as text."""
    tokenizer = load_tokenizer(str(write_hub(tmp_path)))
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.encode_special_tokens = True
    start, end = (backend.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    assert TEMPLATE == "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    plain = backend.encode(content, add_special_tokens=False).ids
    assert encode_prompt(tokenizer, [{"role": "user", "content": content}]) == [start, *plain, end]


def test_markers_of_turns_are_control_strings_declared_or_not(tmp_path):
    """Tags that an answer may hold are not."""
    for family, markers in (
        ("undeclared", {"<|User|>", "<|Assistant|>", "<|im_end|>"}),
        ("pieces", {"<turn>", "<end>"}),
    ):
        (tmp_path / family).mkdir()
        tokenizer = FAMILIES[family](tmp_path / family)
        assert markers <= tokenizer.control and "<think>" not in tokenizer.control
        think = tokenizer.encode("<think>")[-1]
        assert tokenizer.piece(think) == "<think>" and think in encode_response(tokenizer, "<think>a</s><turn></think>")


def test_a_stop_token_is_one_whether_or_not_its_file_says_that_it_is_special(tmp_path):
    bpe = train_bpe(SMOLLM_WORDS)
    bpe.add_tokens(["<eos>", "<end>", "<pad>", "<word>"])
    config = {"eos_token": "<eos>", "pad_token": "<pad>", "chat_template": "{{ messages[0].content }}"}
    generation = {"eos_token_id": bpe.token_to_id("<end>")}
    tokenizer = load_tokenizer(str(write_hub(tmp_path, config=config, generation=generation, bpe=bpe)))
    assert {"<eos>", "<end>", "<pad>"} <= tokenizer.control and "<word>" not in tokenizer.control


def test_a_response_ends_with_its_only_stop_token(tokenizer):
    """A target of supervised fine-tuning would otherwise end wherever a solution quotes the end of a turn."""
    text = PromptText(instruction="boxed", sources=(), privileged="answer", enable_thinking=None, shots=())
    for control in tokenizer.control:
        problem = Problem(question="a", answer="a", source="", index=0, scorer="math", solution=f"a {control} a")
        assert control_ids(tokenizer, text.target(tokenizer, problem, [])) == [tokenizer.stop_ids[0]]


def test_a_mark_of_ours_in_a_content_is_left_as_it_is():
    tokenizer = load_tokenizer("byte")
    for text in ("\ue000<|im_end|>\ue000", "\ue000", "".join(map(chr, range(0xE000, 0xF900))) + "<|pad|>"):
        ids = encode_prompt(tokenizer, student_messages(text, instruction=""))
        assert bytes(id for id in ids if id < 256).decode() == f"user\n{text}\nassistant\n"


def test_a_vocabulary_that_reads_a_control_string_anyway_is_refused(tmp_path):
    """A Unigram model would take the whole piece, whatever its kind."""
    pieces = [("</s>", 0.0), ("a", -1.0), *((letter, -9.0) for letter in "</s>")]
    model = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert encode_prompt(tokenizer, student_messages("a", instruction=""))
    with pytest.raises(UserError, match="model.tokenizer: it makes a control token of '</s>' even as plain text"):
        encode_prompt(tokenizer, student_messages("a</s>", instruction=""))


def test_a_template_that_fails_still_has_its_special_tokens(tmp_path):
    tokenizer = hub(tmp_path, "{{ raise_exception('no') }}")
    assert tokenizer.control == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
