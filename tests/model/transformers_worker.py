"""What the transformers on the path makes of exported folders: python transformers_worker.py OUT FOLDER…

OUT becomes an .npz of {folder name}/logits f32[S, V] of fixed ids, /greedy, the ids that it generates after them until
it stops by itself, and /encoded, the ids of a fixed text.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

IDS = [int(id) for id in np.random.default_rng(0).integers(3, 300, 120)]
TEXT = "12 + 345<|im_end|>\nder Fluß"
LIMIT = 30  # generated tokens


def look(folder: Path) -> dict[str, np.ndarray]:
    """Logits, greedy continuation and encoded text of one folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = model(ids).logits[0].float().numpy()
        written = model.generate(ids, do_sample=False, max_new_tokens=LIMIT)[0, len(IDS) :].numpy()
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"]
    return {"logits": logits, "greedy": written, "encoded": np.array(encoded)}


def main() -> None:
    """The command."""
    out, *folders = map(Path, sys.argv[1:])
    found = {"version": np.array(transformers.__version__)}
    for folder in folders:
        found |= {f"{folder.name}/{name}": values for name, values in look(folder).items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
