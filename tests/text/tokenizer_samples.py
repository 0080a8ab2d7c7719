"""Small tokenizers trained on a few lines, written as tokenizer.json, GGUF and SentencePiece files."""

import io
import json
import pathlib

import gguf
import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "What is 12 + 345?",
    "the answer is \\boxed{357}",
    "User: hello",
    "Assistant: \\frac{1}{2}",
    "der Fluß 河",
] * 20
TEXTS = [
    "Was kostet 1 Fluß? 河, naïve, 🙂, \u0416",
    "12 + 345 = 357, 3.14159",
    "\\frac{a_{1}^2}{\\sqrt{2}} \\boxed{-7}\n\n  two  spaces\tand a tab",
    "",
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_bpe(pre_tokenizer) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    # Many published files add a BOS of their own, which the chat template writes too.
    bpe.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    return bpe


SMOLLM_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def write_hub(folder: pathlib.Path, *, config=None, generation=None, bpe=None) -> pathlib.Path:
    (bpe or train_bpe(SMOLLM_WORDS)).save(str(folder / "tokenizer.json"))
    if config is None:
        config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def write_gguf(
    file: pathlib.Path, bpe: tokenizers.Tokenizer, *, pre="smollm", model="gpt2", eos=2, eot=None
) -> pathlib.Path:
    state = json.loads(bpe.to_str())
    vocab = bpe.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get) + ["[PAD]"]
    kinds = dict.fromkeys(SPECIALS, gguf.TokenType.CONTROL)
    kinds |= {"<think>": gguf.TokenType.USER_DEFINED, "[PAD]": gguf.TokenType.UNUSED}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    if eos is not None:
        writer.add_eos_token_id(eos)
    if eot is not None:
        writer.add_eot_token_id(eot)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("dummy", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_sentencepiece(file: pathlib.Path, **options) -> pathlib.Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        **options,
    )
    file.write_bytes(model.getvalue())
    return file
