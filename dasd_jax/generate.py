"""Answers a question: python -m dasd_jax.generate --workdir=DIR [--checkpoint=STEP|PATH] --prompt="What is 17 + 25?"

The question is put into the same prompt as a training problem of the run in DIR, whose config.json says which model,
tokenizer and prompt that is; the answer is streamed, and a line on stderr says of which step it is. A --config that
differs in these is refused. Without a run: --config=FILE.py --checkpoint=start answers with the untrained model.
"""

import dataclasses
import sys
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dasd_jax import cli, recorded
from dasd_jax.batch import Params, PromptBatch
from dasd_jax.data.sources import Problem
from dasd_jax.errors import UserError
from dasd_jax.mesh import MeshConfig, make_mesh, per_shard, replicate
from dasd_jax.model.config import ModelConfig
from dasd_jax.rollout import sampler
from dasd_jax.run import compiled, models, setup
from dasd_jax.run.asked import Asked
from dasd_jax.text.prompts import left_pad
from dasd_jax.text.shown import shown
from dasd_jax.text.tokenizer import Tokenizer

_TOKENS_AT_A_TIME = 4  # per print; each costs a round trip to the device
_PROMPT_BUCKET = 64  # tokens; prompts are padded to a multiple to limit the number of compilations


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.parser(__doc__, of_a_run=True)
    flags.add_argument("--prompt", required=True, metavar="TEXT", help="the question; - reads standard input")
    flags.add_argument(
        "--checkpoint", default="", metavar="STEP", help="step, best, path, or start for untrained (default: newest)"
    )
    command = cli.parse(flags, argv)
    config = recorded.for_checkpoint(command.config, command.workdir, command.flags.checkpoint)
    question = sys.stdin.read() if command.flags.prompt == "-" else command.flags.prompt
    if not question.strip():
        raise UserError("--prompt: empty: expected a question")
    source = Asked.of(command.workdir, command.flags.checkpoint)
    compiled.keep_programs()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokenizer = source.tokenizer(config.model)
        _, model, params = source.open(config, mesh)
        models.check_vocabulary(tokenizer, model)
        own = recorded.benchmarks(command.workdir, command.flags.checkpoint)
        text = setup.prompt_text(config, setup.problems_with_shots(config, own))
        ids = text.student(tokenizer, Problem(question=question, answer="", source="", index=0, scorer="math"))
        sampling = dataclasses.replace(setup.eval_sampling(config, tokenizer), rollouts=1)
        if len(ids) + _PROMPT_BUCKET + sampling.max_new_tokens > model.context:
            longest = model.context - sampling.max_new_tokens - _PROMPT_BUCKET
            raise UserError(f"--prompt: {len(ids)} tokens with its template: expected at most {longest}")
        print(f"answer of {source.folder or 'the untrained model'}:", file=sys.stderr, flush=True)
        for piece in stream(model, sampling, params, tokenizer, ids, config.run.seed):
            print(shown(piece), end="", flush=True)
        print()


def stream(
    model: ModelConfig, sampling: sampler.Sampling, params: Params, tokenizer: Tokenizer, ids: list[int], seed: int
) -> Iterator[str]:
    """Yields the answer to one prompt in pieces of text as they are sampled."""
    tokens, mask = left_pad([ids], -(-len(ids) // _PROMPT_BUCKET) * _PROMPT_BUCKET, tokenizer.pad_id)
    mesh = jax.sharding.get_mesh()
    prompts = replicate(mesh, PromptBatch(tokens, mask, np.zeros(1, np.int32)))
    params = sampler.relayout(model, params, sampling.weights)
    keys = sampler.row_keys(seed, "generate", jnp.int32(0), prompts.example_id, 1)

    def on_one_device(function):
        return jax.jit(lambda *args: per_shard(partial(function, model, sampling), (None,) * len(args), None)(*args))

    advance = on_one_device(partial(sampler.advance, steps=_TOKENS_AT_A_TIME))
    queue = on_one_device(sampler.open_queue)(params, prompts, keys)
    state = on_one_device(sampler.begin)(queue)

    printed = ""
    while True:
        state = advance(params, queue, state)
        response, length, done = jax.device_get((state.response, state.length, state.done))
        whole = tokenizer.decode(response[0][: length[0]])
        # A character may span two tokens: an incomplete one is held back.
        ready = whole if done else whole.rstrip("\ufffd")
        yield ready[len(printed) :]
        printed = ready
        if done:
            return


if __name__ == "__main__":
    cli.run(main)
