"""Converts weights to another format: python -m dasd_jax.convert --source=PATH --output=DIR --format=hf|checkpoint

PATH is a .gguf file, a Hugging Face folder, a checkpoint of ours, or the workdir of a run, whose newest checkpoint is
used. `hf` writes a folder that transformers 4.55 and 5 load as the same model; `checkpoint` writes one for
model.weights, which all devices read in parallel. The tokenizer is copied with the weights, and generation_config.json
names the ids that end a text.
"""

import os
from pathlib import Path

import jax

from dasd_jax import cli, files, terminal
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
    flags.add_argument("--dtype", default="bfloat16", choices=tuple(hf.DTYPES), help="dtype of hf tensors")
    flags.add_argument("--tokenizer", metavar="PATH", help="needed if the source has no tokenizer")
    asked = flags.parse_args(argv)
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
            hf.save(folder, model, params, asked.dtype, ids.as_json())
        else:
            checkpoint.write(folder, model, {"params": params})
    print(f"{param_table.num_params(model) / 1e6:.1f} M parameters from {source}")
    print(f"written to {output}" + ("" if tokenizer else ", without a tokenizer; pass --tokenizer to include one"))
    if asked.format == "hf" and not hf_rope.fits_version4(model):
        print("its YaRN factor times the original context is not a whole number: transformers 4.57 or later is needed")
    if not ids.eos:
        print("no file names an end-of-text token: generation stops only at its length limit")


def _source(path: Path) -> tuple[Path, str]:
    """(path of the weights, path of their tokenizer or "" if unknown) for a --source."""
    if not os.path.exists(path):
        raise UserError(f"--source: {path} does not exist: expected a .gguf file, a folder of weights or a run")
    where, tokenizer = models.located(str(path), "--source")
    return where, "" if tokenizer == "byte" else tokenizer


if __name__ == "__main__":
    cli.run(main)
