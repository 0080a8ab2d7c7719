"""Where the public data sets of docs/data.md come from, and the command that prepares each."""

import dataclasses
from pathlib import PurePath


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set as it is published.

    Attributes:
        repository: on the Hugging Face hub.
        files: names of the files to download.
        layout: of their rows, a name in data/layouts.py.
    """

    repository: str
    files: tuple[str, ...]
    layout: str


# By the name of the folder that `prepare` makes.
PUBLISHED = {
    "dapo_math_17k": Published("BytedTsinghua-SIA/DAPO-Math-17k", ("dapo-math-17k.parquet",), "verl"),
    "gsm8k": Published("openai/gsm8k", ("main/train-00000-of-00001.parquet",), "question_answer"),
    "gsm8k_test": Published("openai/gsm8k", ("main/test-00000-of-00001.parquet",), "question_answer"),
    "math500": Published("HuggingFaceH4/MATH-500", ("test.jsonl",), "problem_answer"),
    "aime24": Published("HuggingFaceH4/aime_2024", ("train-00000-of-00001.parquet",), "problem_answer"),
    "aime25": Published("opencompass/AIME2025", ("aime2025-I.jsonl", "aime2025-II.jsonl"), "question_answer"),
    "hmmt25": Published("MathArena/hmmt_feb_2025", ("train-00000-of-00001.parquet",), "problem_answer"),
    "minerva": Published("math-ai/minervamath", ("test.jsonl",), "question_answer"),
    "olympiadbench": Published("Hothan/OlympiadBench", ("OE_TO_maths_en_COMP.parquet",), "olympiadbench"),
}


def how_to_prepare(folder: str) -> str:
    """In one line, the command that makes the data set of a folder, by the folder's name where that is known."""
    found = PUBLISHED.get(PurePath(folder).name)
    if found is None:
        return f"python -m dasd_jax.prepare --input=FILE --output={folder} makes one of a .jsonl or .parquet file"
    return (
        f"python -m dasd_jax.prepare --input={','.join(found.files)} --layout={found.layout} --output={folder} "
        f"makes it of the files of {found.repository} (Hugging Face hub)"
    )
