"""What a bare machine with one GPU is asked, the most valuable first: python -m benchmarks.device --output=DIR

Each part is a process with a time limit of its own, and leaves a line in DIR/results.jsonl when it ends, whatever
becomes of the next:

    kernels   attention by the platform's fused kernel beside XLA: errors of values and gradients in bfloat16, seconds
    noise     how much of the teacher's gap is rounding in bfloat16, by both kernels: SmolLM2
    decode    tokens/s at the shape of Qwen3-1.7B, held against the memory bandwidth of the same run
    update    FLOP/s of score pass and update at the same shape, held against matrix products of the same run
    step      whole steps of DASD by phases, from the log of a training: SmolLM2, 32 x 8 responses of 256 tokens
    smollm2   configs/smollm2_math.py in bfloat16
    gsm8k-M   configs/gsm8k.py by the methods M = dasd, grpo, opsd, from the same start with the same data

What they read is what benchmarks.device.unpack leaves in --given; a part whose files are missing is skipped. Trainings
are in GIVEN/runs, and the same command goes on with them; their logs are copied to DIR.
"""

import sys
from pathlib import Path

from benchmarks.device.runner import Part, run_parts
from benchmarks.device.unpack import GIVEN
from dasd_jax import terminal
from dasd_jax.errors import UserError

SMOLLM2 = ("SmolLM2-135M-Instruct.Q4_1.gguf", "sums.jsonl")
QWEN = ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "gsm8k/dataset_info.json", "gsm8k_test/dataset_info.json")
# Name → seconds at most, seconds without which it is not started, files.
PARTS = {
    "kernels": (80, 30, ()),
    "noise": (120, 40, SMOLLM2),
    "decode": (100, 40, ()),
    "update": (100, 40, ()),
    "step": (110, 60, SMOLLM2),
    "smollm2": (80, 60, SMOLLM2),
    "gsm8k-dasd": (160, 90, QWEN),
    "gsm8k-grpo": (160, 90, QWEN),
    "gsm8k-opsd": (160, 90, QWEN),
}


def main(argv: list[str]) -> int:
    """Runs the parts; returns how many did not end well."""
    flags = terminal.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    flags.add_argument("--given", type=Path, default=GIVEN, metavar="DIR", help=f"what was unpacked (default {GIVEN})")
    flags.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="these alone (default: all)")
    flags.add_argument("--minutes", type=float, default=9.0, help="for all of them (default 9)")
    flags.add_argument("--tiny", action="store_true", help="each at a size that a CPU finishes, with random weights")
    asked = flags.parse_args(argv)
    chosen = asked.parts.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        raise UserError(f"--parts: {unknown[0]!r}: expected one of {', '.join(PARTS)}")
    output, given = asked.output.expanduser().absolute(), asked.given.expanduser().absolute()
    parts = []
    for name in chosen:
        limit, least, needs = PARTS[name]
        command = [sys.executable, "-m", "benchmarks.device.parts", name, f"--output={output}", f"--given={given}"]
        command += ["--seconds={seconds}", *["--tiny"] * asked.tiny]
        if asked.tiny:
            limit, needs = 4 * limit, ()  # a busy CPU compiles slowly, and random weights need no files
        parts.append(Part(name, tuple(command), limit, least, tuple(given / file for file in needs)))
    # Programs that one call compiles are there in the next.
    environment = {"PYTHONPATH": str(given / "site"), "JAX_COMPILATION_CACHE_DIR": str(given / "compiled")}
    lines = run_parts(parts, output, 60 * asked.minutes, environment)
    return sum(line["status"] in ("failed", "timeout") for line in lines)


if __name__ == "__main__":
    try:
        sys.exit(min(1, main(sys.argv[1:])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
