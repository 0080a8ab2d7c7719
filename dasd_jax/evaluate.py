"""Scores held-out problems: python -m dasd_jax.evaluate --config=… --workdir=DIR [--checkpoint=STEP|PATH|start]

Prints Avg@k with its standard error by problem, and Pass@k, per source and overall; writes eval/<step>.json.
"""

import json

import jax
import rich.box
import rich.console
import rich.table

from dasd_jax import cli
from dasd_jax.learner import checkpoint, session
from dasd_jax.learner.evaluation import evaluate
from dasd_jax.mesh import make_mesh
from dasd_jax.rollout.verifier import Verifier


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__)
    flags.add_argument(
        "--checkpoint", default="", metavar="STEP", help="step, path, or start for untrained (default: newest)"
    )
    command = cli.parse(flags, argv)
    config, workdir, which = command.config, command.workdir, command.flags.checkpoint
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        Verifier(
            config.rollout.verifier_workers, config.rollout.verifier_deadline_s, config.rollout.verifier_memory_mb
        ) as verifier,
    ):
        tokenizer = session.open_tokenizer(config.model)
        if which == "start":
            name, (model, params) = "start", session.open_model(config, mesh)
        else:
            folder = checkpoint.find(workdir, which)
            name = str(int(folder.name)) if folder.name.isdigit() else folder.name
            model, params = checkpoint.restore_params(folder, mesh)
            model = session.settle(config, model)
        session.check_vocabulary(tokenizer, model)
        _, heldout, counts = session.open_prompts(config, tokenizer)
        console = rich.console.Console()
        console.print("problems: " + ", ".join(f"{count} {what}" for what, count in counts.items()), highlight=False)
        with console.status("problems") as status:
            result = evaluate(
                model=model,
                params=params,
                mesh=mesh,
                tokenizer=tokenizer,
                prompts=heldout,
                verifier=verifier,
                sampling=session.eval_sampling(config, tokenizer),
                num_problems=config.run.eval_problems,
                rows=config.rollout.problems * config.rollout.rollouts,
                seed=config.run.seed,
                progress=lambda done, total: status.update(f"problems {done}/{total}"),
            )
    path = workdir / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    console.print(_table(result))
    console.print(f"written to {path}", highlight=False)


def _table(result: dict) -> rich.table.Table:
    k = result["samples"]
    columns = [f"avg@{k}", "standard_error", *(name for name in result if name.startswith("pass@"))]
    columns += ["length_mean", "truncated_frac", "parse_failure_frac"]
    table = rich.table.Table("source", "problems", *columns, box=rich.box.SIMPLE)
    for source, figures in [*result["sources"].items(), ("all", result)]:
        table.add_row(source.partition("?")[0], str(figures["problems"]), *(f"{figures[name]:.3f}" for name in columns))
    return table


if __name__ == "__main__":
    cli.run(main)
