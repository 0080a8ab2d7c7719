"""A valid file of every kind that the program reads, as small as it can be: what the fuzz run damages."""

import dataclasses
import io
import json
from pathlib import Path

import gguf
import jax
import numpy as np
import optax
import pyarrow
import pyarrow.parquet
import sentencepiece
import tokenizers

from dasd_jax.learner import checkpoint, kept
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import gguf_file, hf, param_table
from dasd_jax.model.config import ModelConfig
from dasd_jax.text.tokenizer import CHATML_TEMPLATE

MODEL = ModelConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_dim=16, ff=32, context=512, tied=True
)
OPTIMIZER = optax.adam(1e-3)
ROWS = [
    {"question": f"What is {a} + {a + 1}?", "answer": str(2 * a + 1), "solution": f"{a} + {a} is {2 * a}, and 1.\n"}
    for a in range(6)
]


def write_samples(folder: Path) -> None:
    """One file or folder of every kind under `folder`; Hugging Face and checkpoint folders hold a tokenizer too."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = param_table.init(MODEL, mesh, 0)
        hf.save(folder / "hf", MODEL, params, "float32")
        state = checkpoint.new_state(params, OPTIMIZER, {})
        rest = {name: value for name, value in vars(state).items() if name != "params"}
        checkpoint.write(folder / "checkpoint", MODEL, {"params": params, "rest": rest})
    _write_tokenizer(folder / "hf")
    _write_gguf(folder / "tiny.gguf", {name: np.asarray(x) for name, x in _tensors().items()})
    _write_sentencepiece(folder / "tiny.model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")


def _write_tokenizer(folder: Path) -> None:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|\s+|\p{L}+"), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([row["question"] for row in ROWS], trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML_TEMPLATE, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 1}))


def _write_sentencepiece(file: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(row["question"] for row in ROWS),
        model_writer=model,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())


def _tensors() -> dict[str, np.ndarray]:
    """Zeros by the names of llama.cpp."""
    shapes = {}
    for leaf in param_table.table(MODEL).values():
        for layer in range(leaf.shape[0]) if leaf.stacked else (0,):
            shapes[gguf_file.gguf_name(leaf.name.format(layer))] = leaf.stored_shape
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _write_gguf(file: Path, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(MODEL.num_layers)
    writer.add_context_length(MODEL.context)
    writer.add_embedding_length(MODEL.width)
    writer.add_feed_forward_length(MODEL.ff)
    writer.add_head_count(MODEL.num_heads)
    writer.add_head_count_kv(MODEL.num_kv_heads)
    writer.add_layer_norm_rms_eps(MODEL.norm_eps)
    writer.add_rope_freq_base(MODEL.rope_base)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|im_start|>", "<|im_end|>", *alphabet, "Wh"]
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["W h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template(CHATML_TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def manifest_of(folder: Path, **changed) -> dict:
    """The manifest that makes a checkpoint whole again after its files were damaged."""
    return {
        "architecture": dataclasses.asdict(MODEL),
        "best": False,
        "files": kept.checksums(folder),
        **changed,
    }
