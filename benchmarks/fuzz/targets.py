"""The parsers under fuzz.

A target makes a hostile input in an empty folder and says how the program reads it: (rng, valid samples, empty
folder) → (what the input is, the call that reads it). The call may return or raise UserError; anything else is a find,
and so is a file that it leaves behind when it raises.
"""

import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz import commands, models, problems, runs
from benchmarks.fuzz.samples import write_samples

__all__ = ["TARGETS", "write_samples"]

Target = Callable[[random.Random, Path, Path], tuple[str, Callable[[], object]]]

# Target → its share of the inputs of a whole run.
TARGETS: dict[str, tuple[Target, int]] = {
    "overrides": (commands.overrides, 5),
    "config_files": (commands.config_files, 3),
    "launcher_flags": (commands.launcher_flags, 3),
    "command_flags": (commands.command_flags, 3),
    "rows_jsonl": (problems.rows_jsonl, 5),
    "rows_parquet": (problems.rows_parquet, 5),
    "specs": (problems.specs, 4),
    "prepared": (problems.prepared, 3),
    "templates": (models.templates, 4),
    "tokenizer_json": (models.tokenizer_json, 5),
    "sentencepiece_model": (models.sentencepiece_model, 4),
    "gguf_header": (models.gguf_header, 6),
    "hf_folder": (models.hf_folder, 6),
    "checkpoints": (runs.checkpoints, 4),
    "workdirs": (runs.workdirs, 4),
}
