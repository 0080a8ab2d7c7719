"""What a run leaves and another start of it reads: checkpoints, logs and records."""

import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax

from benchmarks.fuzz import mutate
from benchmarks.fuzz.commands import TINY
from benchmarks.fuzz.samples import OPTIMIZER, manifest_of
from dasd_jax import cli, convert, evaluate, files, recorded, train
from dasd_jax.config import Config
from dasd_jax.learner import checkpoint, kept
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.run import changes, origin
from dasd_jax.run import workdir as run_folder
from dasd_jax.run.runlog import RunLog
from dasd_jax.verify.journal import Journal
from launchers import sweep


def checkpoints(rng: random.Random, samples: Path, folder: Path):
    """Folders of checkpoints: files missing, cut or flipped, manifests that are wrong or vouch for damaged files."""
    run = folder / "run"
    place = run / "checkpoints" / "000002"
    shutil.copytree(samples / "checkpoint", place)
    found = sorted(path for path in place.rglob("*") if path.is_file())
    path = rng.choice(found)
    kind = rng.choice(("damage", "damage", "missing", "manifest", "manifest", "vouched", "vouched", "odd"))
    what = f"{kind}: {path.relative_to(place)}"
    if kind in ("damage", "vouched"):
        what, content = mutate.damaged(rng, path.read_bytes())
        path.write_bytes(content)
        what = f"{kind}: {path.relative_to(place)}: {what}"
    elif kind == "missing":
        path.unlink()
    elif kind == "odd":
        path.unlink()
        rng.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name), path.touch))()
    if kind == "manifest":
        what, text = mutate.altered(rng, json.loads((place / "manifest.json").read_text()))
        (place / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        what = f"manifest: {what}"
    if kind == "vouched" and path.name != "manifest.json":
        (place / "manifest.json").write_text(json.dumps(manifest_of(place)))
    which = rng.choice(("", "2", "best", str(place), "²", "-1", "9" * 30, "\0", "x" * 300, "."))
    goes_on = rng.random() < 0.5

    def read():
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with jax.set_mesh(mesh), run_folder.writing(run):
            if not goes_on:
                checkpoint.restore_params(kept.find(run, which), mesh)
            elif found := kept.latest(run, set_aside=False):
                checkpoint.restore(found, mesh, OPTIMIZER, {})

    return f"{'train' if goes_on else f'--checkpoint={which!r:.30}'}, {what}", read


def _tiny(*overrides: str) -> Config:
    return cli.parse(cli.parser(""), [TINY, *overrides]).config


# Who reads the config.json of a run: its next start, evaluate and generate with and without --config, and convert.
CONFIG_READERS = (
    lambda workdir: (run_folder.check(_tiny(), workdir), recorded.dated(_tiny(), workdir)),
    lambda workdir: recorded.for_checkpoint(_tiny(), workdir, ""),
    lambda workdir: cli.parse(cli.parser("", of_a_run=True), [f"--workdir={workdir}"]),
    convert._source,
)


def workdirs(rng: random.Random, _samples: Path, folder: Path):
    """What readers of a run meet in its workdir: config, metrics, samples, figures, half an evaluation."""
    workdir = folder / "w"
    _finished(workdir)
    name = rng.choice([path.relative_to(workdir) for path in sorted(workdir.rglob("*")) if path.is_file()])
    path = workdir / name
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    if rng.random() < 0.7:
        what, lines[number] = mutate.altered(rng, json.loads(lines[number]))
        path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    else:
        what, content = mutate.damaged(rng, path.read_bytes())
        path.write_bytes(content)

    if path.name != "done.json":
        (workdir / "done.json").unlink(missing_ok=True)
    if path.name == "config.json":
        (workdir / "checkpoints").mkdir()

    def read():
        if path.name == "4.partial.jsonl":
            evaluate.Partial(path, {"checkpoint": "4", "run.seed": 0})
        elif path.name == "config.json":
            rng.choice(CONFIG_READERS)(workdir)
        elif path.name == "done.json":
            tiny = _tiny()
            point = sweep.Point({"run.seed": 0}, tiny, workdir, ())
            sweep.table([point], [sweep.result(point)], {})
            train.train(tiny, workdir)
        elif path.name == "changes.jsonl":
            changes.after(changes.read(workdir), 1, [], _tiny(), 2)
        elif path.name == "from.json":
            origin.resolve("", False, workdir)
        elif path.name == "verdicts.jsonl":
            Journal(path, SimpleNamespace(verify=lambda *_: [])).verify(0, [], [])
        elif path.parent.name == "heldout":
            _end_of_a_run(workdir)
        else:
            RunLog(workdir, 4).close()

    return f"{name}: {what}", read


def _end_of_a_run(workdir: Path) -> None:
    """What is left of a run that was killed between its last checkpoint and done.json."""
    config = _tiny("--config.run.steps=4")
    lines = [{"step": step, "reward/mean": 0.5} for step in range(5)]
    log, display = SimpleNamespace(lines=lines), SimpleNamespace(say=lambda text: text.encode())
    run = {"config": config, "workdir": workdir, "log": log, "display": display}
    train.finish(SimpleNamespace(**run, started=0.0, evaluated_since=0))


def _finished(workdir: Path) -> None:
    """The files of a finished run, without one."""
    figures = {
        "problems": 2,
        "samples": 2,
        "avg@2": 0.5,
        "pass@2": 0.5,
        "standard_error": 0.1,
        "per_problem": [0.0, 1.0],
    }
    figures["macro"] = {"avg@2": 0.5}
    held = {"avg@2": [0.1, 0.2], "pass@2": [0.1, 0.2], "standard_error": [0.1, 0.1], "rise": 0.1}
    held |= {"rise_standard_error": 0.01, "problems": 2}
    answer = {"example_id": 0, "source": "gym:lcm", "question": "1?", "answer": "1", "text": ["2"], "extracted": ["2"]}
    answer |= {"reward": [0.0], "length": [3], "finished": [True], "error": [""]}
    metrics = [{"step": step, "reward/mean": 0.5, "entropy/mean": 1.0, "eval/avg@2": 0.1} for step in range(5)]
    samples = [{"step": step, "question": "1?", "text": "2", "tokens": ["2"], "entropy": [0.1]} for step in range(1, 5)]
    verdicts = [
        {"batch": b, "responses": "ab", "verdicts": [[1.0, 1.0, "2", ""], [0.0, 0.0, None, "parse"]]} for b in (0, 1)
    ]
    tiny = _tiny()
    files.write_json(workdir / "config.json", tiny.to_dict())
    files.write_json(workdir / "from.json", {"run": "/first", "step": 4, "weights": "ab", "optimizer": False})
    files.write_lines(
        workdir / "changes.jsonl", [{"step": 2, "field": "optim.learning_rate", "before": 1e-6, "after": 3e-6}]
    )
    files.write_json(workdir / "heldout" / "0.json", figures)
    files.write_json(workdir / "heldout" / "4.json", figures)
    files.write_json(
        workdir / "done.json",
        {"heldout": held, "mean_over_steps": {"reward/mean": 0.1}, "seconds_this_session": 1.0, "peak_memory_gib": 1.0,
         "workdir": str(workdir), "steps": 4, "objective": tiny.to_dict()["objective"]},
    )  # fmt: skip
    (workdir / "eval").mkdir()
    identity = {"checkpoint": "4", "run.seed": 0}
    for name, lines in (
        ("metrics.jsonl", metrics),
        ("samples.jsonl", samples),
        ("verdicts.jsonl", verdicts),
        ("eval/4.partial.jsonl", [identity, answer, answer]),
    ):
        (workdir / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
