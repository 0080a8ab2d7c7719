"""Converts weights to another format: python -m dasd_jax.convert --source=PATH --output=DIR --format=hf|checkpoint

PATH is a .gguf file, a Hugging Face folder, a checkpoint of ours, or the workdir of a run, whose newest checkpoint is
used. `hf` writes a folder that transformers 4.55 and 5 load as the same model; `checkpoint` writes one for
model.weights, which all devices read in parallel. The tokenizer is copied with the weights, and generation_config.json
names the ids that end a text. hf tensors are bfloat16, or float32 where a run has computed in it and bfloat16 would
round what it has learnt.
"""

import os
from pathlib import Path

import jax

from dasd_jax import cli, files, terminal
from dasd_jax.batch import Params
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.model import hf, hf_rope, param_table
from dasd_jax.run import models
from dasd_jax.text.tokenizer_files import copy_special_ids, copy_tokenizer


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("--source", required=True, metavar="PATH", help="the weights")
    flags.add_argument("--output", required=True, metavar="DIR", help="folder to write; must not exist yet")
    flags.add_argument("--format", required=True, choices=("hf", "checkpoint"), help="output format")
    flags.add_argument(
        "--dtype",
        choices=tuple(hf.DTYPES),
        help="dtype of hf tensors (default: bfloat16, or float32 for a checkpoint of model.compute_dtype=float32)",
    )
    flags.add_argument("--tokenizer", metavar="PATH", help="needed if the source has no tokenizer")
    asked = flags.parse_args(argv)
    if asked.dtype and asked.format == "checkpoint":
        raise UserError(f"--dtype: {asked.dtype}: a checkpoint is in float32: expected --format=hf with it")
    output = Path(asked.output).expanduser().absolute()
    if os.path.exists(output):
        raise UserError(f"--output: {output} exists: expected a folder that does not exist yet")
    source, tokenizer = _source(Path(asked.source).expanduser())
    tokenizer = asked.tokenizer or tokenizer
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh), files.new_folder(output, "--output") as folder:
        ids = copy_tokenizer(tokenizer, folder) if tokenizer else copy_special_ids(source, folder)
        model, params = models.load_weights(str(source), mesh)
        if asked.format == "hf":
            dtype, said = _dtype(asked.dtype, source, params)
            hf.save(folder, model, params, dtype, ids.as_json())
        else:
            said = ""
            checkpoint.write(folder, model, {"params": params})
    print(f"{param_table.num_params(model) / 1e6:.1f} M parameters from {source}")
    print(f"written to {output}" + ("" if tokenizer else ", without a tokenizer; pass --tokenizer to include one"))
    if said:
        print(said)
    if asked.format == "hf" and not hf_rope.fits_version4(model):
        print("its YaRN factor times the original context is not a whole number: transformers 4.57 or later is needed")
    if not ids.eos:
        print("no file names an end-of-text token: generation stops only at its length limit")


def _dtype(asked: str | None, source: Path, params: Params) -> tuple[str, str]:
    """(the dtype of the tensors, what is said of values that it does not hold or of why it is not bfloat16)."""
    dtype = asked or "bfloat16"
    count, whole = hf.rounded(params, dtype), sum(leaf.size for leaf in jax.tree.leaves(params))
    some = f"{count:,} of {whole:,} values"
    is_ours = (source / "manifest.json").is_file()
    if count and not asked and is_ours and checkpoint.architecture(source).compute_dtype == "float32":
        return "float32", f"tensors are float32, like the checkpoint's; --dtype=bfloat16 would round {some}"
    return dtype, f"{some} were rounded to {dtype}; --dtype=float32 keeps them" if count else ""


def _source(path: Path) -> tuple[Path, str]:
    """(path of the weights, path of their tokenizer or "" if unknown) for a --source."""
    if not os.path.exists(path):
        raise UserError(f"--source: {path} does not exist: expected a .gguf file, a folder of weights or a run")
    where, tokenizer = models.located(str(path), "--source")
    return where, "" if tokenizer == "byte" else tokenizer


if __name__ == "__main__":
    cli.run(main)
