"""Logits beside those of transformers, on the same files: `make test-slow`."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasd_jax.model import hf, transformer, weights
from dasd_jax.text.prompts import left_pad
from dasd_jax.text.tokenizer_files import load_tokenizer

pytestmark = pytest.mark.slow

CACHE = Path("~/.cache/dasd_jax").expanduser()
SMOLLM2 = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
# A real Qwen2.5 that a person puts here; see docs/results.md.
QWEN = Path(os.environ.get("DASD_QWEN_GGUF", CACHE / "qwen" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"))
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "Llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "Llama, untied": {"tie_word_embeddings": False},
    "Llama, linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen2, windows": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    "Qwen3": {"tie_word_embeddings": False},
    "Qwen3, YaRN": {"rope_parameters": YARN, "tie_word_embeddings": True},
    "Olmo3": {"sliding_window": 9, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
}  # fmt: skip


def ours(config, params, ids, pad_id):
    """Logits of every sequence, computed as one left-padded batch."""
    tokens, mask = left_pad(ids, max(map(len, ids)), pad_id)

    @jax.jit
    def logits(params, tokens, mask):
        hidden, _ = transformer.forward(config, params, tokens, transformer.prompt_positions(mask), mask)
        return transformer.unembed(config, params, hidden)

    whole = np.asarray(logits(params, jnp.asarray(tokens), jnp.asarray(mask)))
    return [whole[row, -len(sequence) :] for row, sequence in enumerate(ids)]


def theirs(model, ids):
    import torch

    with torch.no_grad():
        return [model(torch.tensor([sequence])).logits[0].float().numpy() for sequence in ids]


def gguf_model(path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_of_every_family_have_the_same_logits_in_and_out(family, mesh, tmp_path):
    """float32, max |Δ| < 2e-4 at a scale of 10, read from a folder of transformers; and again from one of ours."""
    import torch
    import transformers

    name = family.partition(",")[0]
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**SIZES, **FAMILIES[family])
    model = getattr(transformers, f"{name}ForCausalLM")(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.model.norm.weight.mul_(10 / model(torch.arange(60)[None]).logits.abs().max())
    model.save_pretrained(tmp_path / "theirs")
    config, params = weights.load(str(tmp_path / "theirs"), mesh)
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 320, length).tolist() for length in (60, 23, 41)]
    expected = theirs(model, ids)
    scale = max(np.abs(logits).max() for logits in expected)
    assert scale > 3
    for got, want in zip(ours(config, params, ids, 0), expected, strict=True):
        difference = np.abs(got - want).max()
        print(f"{family}: max |Δ| {difference:.2e} at scale {scale:.1f}")
        assert difference < 2e-5 * scale

    hf.save(tmp_path / "ours", config, params, "float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for got, want in zip(theirs(again, ids), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * scale)


TEXTS = [
    "The capital of France is",
    "What is 17 + 25? Answer: 42. Let me check: 17 + 20 = 37, and 37 + 5 = 42.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Die Gleichung $x^2 - 5x + 6 = 0$ hat die Lösungen 2 und 3. 数学は楽しい。",
]


def test_smollm2_has_the_logits_of_transformers(mesh):
    """float32, ragged batch, max |Δ| < 1e-3 at a logit scale above 20, and the same most likely token."""
    tokenizer = load_tokenizer(str(SMOLLM2))
    config, params = weights.load(str(SMOLLM2), mesh)
    ids = [tokenizer.encode(text) for text in TEXTS]
    pairs = zip(ours(config, params, ids, tokenizer.pad_id), theirs(gguf_model(SMOLLM2), ids), strict=True)
    for row, (got, expected) in enumerate(pairs):
        difference = np.abs(got - expected).max()
        print(f"row {row}: max |Δ| {difference:.2e} at scale {np.abs(expected).max():.1f}")
        assert np.abs(expected).max() > 20
        assert difference < 1e-3
        np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


def test_an_exported_model_writes_the_same_text_under_transformers(mesh, tmp_path):
    """SmolLM2 from GGUF to a checkpoint to a Hugging Face folder with its tokenizer: 40 greedy tokens agree."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dasd_jax import convert

    convert.main([f"--source={SMOLLM2}", f"--output={tmp_path / 'ours'}", "--format=checkpoint"])
    convert.main([f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'hf'}", "--format=hf", "--dtype=float32"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three primes above 20."}], add_generation_prompt=True, return_dict=False
    )
    own = load_tokenizer(str(tmp_path / "hf"))
    assert own.decode(ids) == load_tokenizer(str(SMOLLM2)).decode(ids)
    written = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)[0].tolist()
    expected = gguf_model(SMOLLM2).generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)[0].tolist()
    assert written == expected
    config, params = weights.load(str(tmp_path / "hf"), mesh)
    [logits] = ours(config, params, [written[:-1]], own.pad_id)
    assert logits.argmax(-1)[len(ids) - 1 :].tolist() == written[len(ids) :]
    print(tokenizer.decode(written[len(ids) :]))


def test_a_real_qwen_agrees_with_transformers_on_its_most_likely_tokens(mesh):
    """20 prompts in its chat template: arg-max agreement at least 99.9 %."""
    if not QWEN.exists():
        pytest.skip(f"{QWEN} is not there: set DASD_QWEN_GGUF to a Qwen2.5 GGUF file")
    from dasd_jax.data.sources import load_source
    from dasd_jax.text.prompts import encode_prompt, student_messages
    from dasd_jax.text.wordings import INSTRUCTIONS

    tokenizer = load_tokenizer(str(QWEN))
    config, params = weights.load(str(QWEN), mesh)
    problems = [
        problem
        for task in ("chain_sum", "gsm_symbolic", "simple_equations", "lcm")
        for problem in load_source(f"gym:{task}?size=5&seed=7")
    ]
    ids = [
        encode_prompt(tokenizer, student_messages(problem.question, instruction=INSTRUCTIONS["boxed"]))
        for problem in problems
    ]
    same, difference, scale = [], 0.0, 0.0
    for got, want in zip(ours(config, params, ids, tokenizer.pad_id), theirs(gguf_model(QWEN), ids), strict=True):
        same += (got.argmax(-1) == want.argmax(-1)).tolist()
        difference, scale = max(difference, np.abs(got - want).max()), max(scale, np.abs(want).max())
    print(f"{len(ids)} prompts, {len(same)} tokens: {np.mean(same):.4%} agree, max |Δ| {difference:.2e} at {scale:.1f}")
    assert len(ids) == 20 and np.mean(same) >= 0.999
