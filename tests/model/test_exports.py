"""Exported folders under transformers 4.55 and 5: the same logits, and generation that stops at the same token.

`make test-slow` installs 4.55 into a folder of its own, from which a separate process imports it.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_gguf import KEYS, LLAMA, QWEN2, llama3_factors, tensors_of
from test_gguf import write as write_gguf
from test_logits_parity import LLAMA3, SIZES, YARN, ours, theirs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dasd_jax import convert
from dasd_jax.model import hf, param_table, weights
from dasd_jax.model.config import LinearScaling, Llama3Scaling, YarnScaling
from dasd_jax.text.tokenizer_files import load_tokenizer

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("transformers_worker.py")
VERSION4 = Path(sys.prefix) / "transformers4"
WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
# The context of YaRN is not factor × original context, as in the configurations that Qwen recommends.
MODELS = {
    "Llama-llama3": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "Llama-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    "Qwen2-untied": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "Qwen2-windows": {"tie_word_embeddings": True, **WINDOWS},
    "Qwen3-yarn": {"rope_parameters": YARN, "tie_word_embeddings": True, "max_position_embeddings": 160},
    "Olmo3-yarn": {"sliding_window": 9, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
}  # fmt: skip


def make(name, folder, ids, limit):
    """A folder of transformers 5 with random weights; (its logits, what it writes after `ids` until its own stop id).

    config.json alone names the stop id: one that it writes for the first time after some others.
    """
    import torch
    import transformers

    family = name.partition("-")[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | MODELS[name])
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.model.norm.weight.mul_(10 / model(torch.tensor([ids])).logits.abs().max())
        model.generation_config.eos_token_id = None
        written = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=limit)[0, len(ids) :].tolist()
    firsts = [at for at, id in enumerate(written) if id not in written[:at]]
    stop = firsts[len(firsts) // 2]
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": [written[stop], 319], "bos_token_id": None}))
    unused = min(set(range(1, 300)) - set(written))  # by which the tokenizer's own end is not met
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<{i}>" for i in range(44))]
    pieces.insert(unused, "<|im_end|>")
    backend = Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)
    return theirs(model, [ids])[0], written[: stop + 1]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """{name: (exported folder, original's logits, original's greedy ids)}, through the command."""
    sys.path.insert(0, str(WORKER.parent))
    from transformers_worker import IDS, LIMIT

    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("models") / name
        logits, written = make(name, folder, IDS, LIMIT)
        out = folder.parent / "exports" / name
        convert.main([f"--source={folder}", f"--output={out}", "--format=hf", "--dtype=float32"])
        made[name] = out, logits, written
    return made


@pytest.mark.parametrize("version", [4, 5])
def test_an_export_is_the_same_model_to_both_versions(version, exports, tmp_path):
    environment = dict(os.environ)
    if version == 4:
        if not VERSION4.is_dir():
            pytest.skip(f"{VERSION4} does not exist: make test-slow installs transformers 4.55 there")
        environment["PYTHONPATH"] = str(VERSION4)
    names = [name for name in MODELS if version == 5 or not name.startswith("Olmo3")]  # which came with 4.57
    folders = [str(exports[name][0]) for name in names]
    subprocess.run([sys.executable, str(WORKER), str(tmp_path / "found.npz"), *folders], check=True, env=environment)
    found = np.load(tmp_path / "found.npz")
    assert str(found["version"]).startswith("4.55." if version == 4 else "5.")
    for name in names:
        folder, logits, written = exports[name]
        scale = np.abs(logits).max()
        difference = np.abs(found[f"{name}/logits"] - logits).max()
        print(f"{name} under {found['version']}: max |Δ| {difference:.2e} at scale {scale:.1f}, {len(written)} tokens")
        assert scale > 3 and difference < 2e-5 * scale
        assert found[f"{name}/greedy"].tolist() == written
        tokenizer = load_tokenizer(str(folder))
        assert written[-1] in tokenizer.stop_ids and not set(written[:-1]) & set(tokenizer.stop_ids)
        assert found[f"{name}/encoded"].tolist() == tokenizer.encode("12 + 345<|im_end|>\nder Fluß")


GGUF = {
    "linear": (LLAMA, LinearScaling(4.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "yarn": (
        QWEN2,
        YarnScaling(4.0, 128, 0.1 * math.log(4) + 1),
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
        },
    ),
    "llama3": (LLAMA, Llama3Scaling(8.0, 1.0, 4.0, 64), {}),
}


@pytest.mark.parametrize("kind", GGUF)
def test_a_scaled_gguf_has_the_logits_of_transformers_on_the_same_weights(kind, mesh, tmp_path):
    import torch
    import transformers

    config, scaling, keys = GGUF[kind]
    arch = "qwen2" if config is QWEN2 else "llama"
    params = param_table.init(config, mesh, 3)
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    hf.save(tmp_path / "hf", scaled, params, "float32")
    tensors = tensors_of(config, params, arch)
    if kind == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(scaling, config.rope_base, config.head_dim // 2)
    file = write_gguf(tmp_path / "tiny.gguf", KEYS | keys, tensors, arch)
    ids = [np.random.default_rng(1).integers(0, config.vocab_size, 200).tolist()]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    read_config, read = weights.load(str(file), mesh)
    [got], [expected] = ours(read_config, read, ids, 0), theirs(model, ids)
    [unscaled] = ours(dataclasses.replace(read_config, rope_scaling=None), read, ids, 0)
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() < 1e-4 * scale < 0.1 * np.abs(unscaled - expected).max()
