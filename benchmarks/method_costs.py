"""What each method costs: python -m benchmarks.method_costs [NAME …]

Forward passes, seconds and memory of one step of every method, with the same rollouts of exactly 64 tokens, on the
first four layers of SmolLM2-135M in float32. Seconds are medians of alternating runs. Memory is the temporaries of the
compiled update, beside those of DASD's full form, whose divergence reads one teacher over the whole vocabulary. The
student is scored, as in one step of run.rescore_every.
"""

import dataclasses
import sys

import jax
import numpy as np

from benchmarks import step_ratio
from benchmarks.timing import hardware, in_turns, verdict
from dasd_jax.data import contexts
from dasd_jax.learner.step import train_step
from dasd_jax.mesh import MeshConfig, make_mesh, put_rows
from dasd_jax.methods import METHODS

RUNS, PROBLEMS, RESPONSE, LAYERS = 3, 1, 64, 4
LIMIT = 1.2  # memory of a divergence of two views beside that of DASD's full form
# Name in the table → method and its fields.
ROWS = {name: (name, {}) for name, method in METHODS.items() if method.rollouts} | {
    "dasd form=full": ("dasd", {"form": "full"}),
    "opsd form=sampled": ("opsd", {"form": "sampled"}),
}


class Step(step_ratio.Step):
    """One step of a method, from rollouts that all share."""

    def __init__(self, method: str, fields: dict, mesh):
        """Loads the model; teachers of siblings have prompts for each rollout, those of skills several a problem."""
        super().__init__(method, mesh, problems=PROBLEMS, response=RESPONSE, layers=LAYERS)
        hp = METHODS[method].fields(**fields)
        self.config = dataclasses.replace(self.config, hp=hp)
        each = self.shown and next(iter(self.shown.values()))
        for name, view in self.config.views.items():
            kinds = contexts.kinds(("gym:chain_sum",), "answer", view.context)
            axes = contexts.batch_shape(kinds, PROBLEMS, step_ratio.GROUP, view.count)
            self.shown[name] = jax.tree.map(lambda x, axes=axes: _with_axes(mesh, x, axes), each)
        if self.config.views:
            self.knobs |= {name: self.knobs["step"] for name in METHODS[method].memory([], hp)}

    def memory(self) -> int:
        """Bytes of temporaries of the compiled update."""
        program = train_step.lower(self.config, self.optimizer, self.state, self.experience).compile()
        return program.memory_analysis().temp_size_in_bytes


def _with_axes(mesh, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """An array of problems [B, ...] as one of their prompts, [*axes, ...]."""
    x = np.asarray(x)
    rest = x.shape[1:]
    return put_rows(mesh, np.broadcast_to(x.reshape(-1, *(1,) * (len(axes) - 1), *rest), (*axes, *rest)).copy())


def main() -> None:
    """Runs and prints."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    print(f"{hardware()}; {PROBLEMS} problem x {step_ratio.GROUP} rollouts x {RESPONSE} tokens\n")
    print("| method | passes: score, update | score, s | update, s | update's temporaries, MiB | / DASD full |")
    print("|---|---|---|---|---|---|", flush=True)
    written, full, met = None, 0, True
    with jax.set_mesh(mesh):
        for label in ("dasd form=full", *(name for name in sys.argv[1:] or ROWS if name != "dasd form=full")):
            step = Step(*ROWS[label], mesh)
            written = step.written = step.sample() if written is None else written
            step.rescore()
            memory = step.memory()
            full = full or memory
            times = in_turns({"score": step.rescore, "update": step.update}, RUNS)
            views, divergence = step.config.views, step.config.method.divergence(step.config.hp)
            scored = sum(views[name].count for name in step.config.scored)
            passes = 1 + scored, 1 + len(divergence.views if divergence else ())
            met &= divergence is None or memory <= LIMIT * full
            print(
                f"| {label} | {passes[0]}, {passes[1]} | {times['score']} | {times['update']} | "
                f"{memory / 2**20:,.0f} | {memory / full:.2f} |",
                flush=True,
            )
    print(f"\nmemory of divergences at most {LIMIT} of DASD's full form: {verdict(met)}")


if __name__ == "__main__":
    main()
