"""What one process does in the tests of several hosts: python tests/hosts_worker.py PORT PROCESSES PROCESS FOLDER."""

import argparse
import functools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import tiny

from dasd_jax import cli, evaluate, hosts, train
from dasd_jax.batch import RolloutBatch
from dasd_jax.mesh import fetch, make_mesh, put_rows, row_shards
from dasd_jax.run import collect, start
from dasd_jax.run.display import Display
from dasd_jax.run.stopping import StopRequest
from dasd_jax.verify.verifier import Verifier

TINY = tiny.TINY
# The same optimiser for all runs of a process, so that its step is compiled once.
start.make_optimizer = functools.cache(start.make_optimizer)
DEVICES = 4  # of all hosts together
# One minibatch, of which each device has a problem. Sums of other order differ in their last digits; a large epsilon
# keeps Adam, a low temperature the router, from making much of them.
SAME = [
    TINY, "--config.optim.minibatches=1", "--config.optim.microbatches=1", "--config.run.steps=5",
    "--config.optim.eps=1e-3", "--config.rollout.temperature=0.25", f"--config.rollout.problems={DEVICES}",
    "--config.rollout.rollouts=2", "--config.run.eval_problems=4", "--config.run.eval_samples=2",
]  # fmt: skip
# The replayed tokens are nobody's samples: the comparison with the sampler is off.
REPLAY = [*SAME, "--config.guards.logp_gap_mean_max=1e9", "--config.guards.logp_gap_p999_max=1e9"]
SAVED_AT = 2


def replay(workdir: Path) -> dict:
    """Goes on from the newest checkpoint of a folder to step 5, with responses that depend on the problem alone.

    Returns:
        By step: the numbers of the log, the examples of the batch, those whose rows lie on this process's devices,
        and those that it verified, once for every response.
    """
    flags = cli.parser("")
    command = cli.parse(flags, [*REPLAY, f"--workdir={workdir}"])
    config, found = command.config, {}
    mesh = make_mesh(config.mesh, jax.devices()[:DEVICES])
    with jax.set_mesh(mesh), Verifier(2, 60.0, 2048) as verifier, StopRequest(config.run.grace_s) as stop:
        run = start.start(config, workdir, mesh, verifier, stop)
        seen, ask = {}, verifier.verify

        def written(model, sampling, params, prompts, seed, purpose, step):
            ids, problems = fetch(prompts.example_id), run.prompts.problems
            held = {int(i) for shard in prompts.example_id.addressable_shards for i in np.asarray(shard.data)}
            seen.update(examples=ids.tolist(), held=sorted(held))
            rows = [(i, turn) for i in ids for turn in range(sampling.rollouts)]
            response = np.full((len(rows), sampling.max_new_tokens), sampling.pad_id, np.int32)
            length = np.zeros(len(rows), np.int32)
            for row, (i, turn) in enumerate(rows):
                text = f"Answer: {problems[i].answer if (i + turn) % 3 else turn}"
                tokens = [*run.tokenizer.encode(text), sampling.stop_ids[0]]
                response[row, : len(tokens)], length[row] = tokens, len(tokens)
            mask = np.arange(sampling.max_new_tokens) < length[:, None]
            nothing = np.zeros(mask.shape, np.float32)
            batch = RolloutBatch(response, mask, sampled_logp=nothing, sampled_entropy=nothing, finished=length > 0)
            return put_rows(mesh, (batch, np.ones(row_shards(mesh), np.int32)))

        def verify(problems, texts, progress):
            place = {id(problem): i for i, problem in enumerate(run.prompts.problems)}
            seen.update(verified=[place[id(problem)] for problem in problems])
            return ask(problems, texts, progress)

        sampled, collect.rollout, verifier.verify = collect.rollout, written, verify
        try:
            for step in range(run.step + 1, config.run.steps + 1):
                metrics, _ = train.learn(run, step)
                stop.release()
                found[str(step)] = {"metrics": metrics, **seen}
                if step == SAVED_AT:
                    train.save(run, best=False)
        finally:
            collect.rollout = sampled
            run.checkpoints.wait()
            run.log.close()
            run.display.close()
    hosts.barrier()  # process 0 has finished the checkpoint
    return found


def go_on(workdir: Path, source: Path) -> dict:
    """The same from the checkpoint that another arrangement has written."""
    if hosts.is_main():
        shutil.copytree(source / "checkpoints", workdir / "checkpoints")
    hosts.barrier()
    return replay(workdir)


def live(folder: Path) -> None:
    """The commands as they are; the last process is asked to stop in the first step, and the same command goes on."""
    show = Display.step

    def step(self, number, metrics, lines):
        if number == 1 and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        show(self, number, metrics, lines)

    Display.step = step
    train.main([*SAME, f"--workdir={folder / 'live'}"])
    assert not (folder / "live" / "done.json").exists(), "one process was asked to stop, and not all did"
    train.main([*SAME, f"--workdir={folder / 'live'}"])
    evaluate.main([*SAME, f"--workdir={folder / 'live'}"])


if __name__ == "__main__":
    port, count, index = map(int, sys.argv[1:4])
    out = Path(sys.argv[4])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    hosts.start(argparse.Namespace(coordinator=f"127.0.0.1:{port}", processes=count, process=index), {})
    result = {"whole": replay(out / "several"), "gone on": go_on(out / "several_on", out / "one")}
    (out / f"process{index}.json").write_text(json.dumps(result))
    live(out)
