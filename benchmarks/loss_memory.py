"""Memory and time of the loss's gradient over the vocabulary: python -m benchmarks.loss_memory

Compares the fused pass with the dense program, which keeps whole arrays [T, V], on the value and gradient of PPO's
surrogate in hidden states and unembedding. Memory is the temporaries of the compiled program, arguments and results
left out, where the dense one need not fit; time is the median of alternating runs where it does. On a CPU the row of
bfloat16 holds a float32 copy of the unembedding, which XLA:CPU makes of a bfloat16 matrix before it multiplies.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.timing import hardware, in_turns, verdict
from dasd_jax import vocab
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.objective.surrogate import ClipRange, clipped
from dasd_jax.objective.token_stats import token_logp

ROWS = 8
BLOCKS = 64  # the pieces of the fused pass
MEMORY = [(jnp.float32, 151_936, 4096, 1024), (jnp.bfloat16, 151_936, 4096, 1024)]  # dtype, V, T, D
TIME = [(jnp.float32, 49_152, 1024, 576), (jnp.float32, 151_936, 1024, 1024)]
RUNS = 5
MEMORY_LIMIT, TIME_LIMIT = 1 / 20, 1.1


def dense_logp(hidden, unembed, response):
    """What `token_logp` returns, differentiated by JAX."""
    return vocab.pick(vocab.log_probs(hidden, unembed, 1.0), response)


def fused_logp(hidden, unembed, response):
    """`token_logp` in BLOCKS pieces."""
    return token_logp((hidden, unembed), response, temperature=1.0, chunk=max(1, response.shape[1] // BLOCKS))


def gradient(logp, hidden, unembed, response, old_logp, advantage):
    """Value and gradients of the surrogate, every token kept."""

    def loss(hidden, unembed):
        gain, _ = clipped(logp(hidden, unembed, response), old_logp, advantage, ClipRange(0.2, 0.2))
        return -jnp.mean(gain)

    return jax.value_and_grad(loss, argnums=(0, 1))(hidden, unembed)


def compiled(logp, dtype, num_words: int, tokens: int, width: int):
    """The program for these shapes."""
    shapes = [(ROWS, tokens // ROWS, width), (num_words, width), *[(ROWS, tokens // ROWS)] * 3]
    dtypes = (dtype, dtype, jnp.int32, jnp.float32, jnp.float32)
    arguments = map(jax.ShapeDtypeStruct, shapes, dtypes)
    return jax.jit(partial(gradient, logp)).lower(*arguments).compile()


def draw(dtype, num_words: int, tokens: int, width: int):
    """Arguments whose logits are of order 1; the old log-probabilities are the dense program's."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (ROWS, tokens // ROWS, width), dtype)
    unembed = jax.random.normal(keys[1], (num_words, width), dtype) / width**0.5
    response = jax.random.randint(keys[2], hidden.shape[:2], 0, num_words)
    advantage = jax.random.normal(keys[3], response.shape)
    return hidden, unembed, response, jax.jit(fused_logp)(hidden, unembed, response), advantage


def shape_cells(dtype, num_words: int, tokens: int, width: int) -> str:
    """The first cells of a row."""
    return f"| {jnp.dtype(dtype).name} | {num_words:,} | {tokens:,} | {width:,} |"


def memory_row(*shape) -> str:
    """Temporaries of both programs and their ratio."""
    dense, fused = (compiled(logp, *shape).memory_analysis().temp_size_in_bytes for logp in (dense_logp, fused_logp))
    met = verdict(fused <= MEMORY_LIMIT * dense)
    return f"{shape_cells(*shape)} {dense / 2**20:,.0f} | {fused / 2**20:,.0f} | 1/{dense / fused:.1f} | {met} |"


def time_row(*shape) -> str:
    """Median and range of both programs' times and the ratio of the medians."""
    programs, arguments = [compiled(logp, *shape) for logp in (dense_logp, fused_logp)], draw(*shape)
    dense, fused = in_turns({p: partial(p, *arguments) for p in programs}, RUNS).values()
    ratio = fused.median / dense.median
    return f"{shape_cells(*shape)} {dense} | {fused} | {ratio:.2f} | {verdict(ratio <= TIME_LIMIT)} |"


def main() -> None:
    """Compiles, runs and prints."""
    print(f"{hardware()}\n")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        print("| dtype | V | T | D | dense temp, MiB | fused temp, MiB | fused / dense | limit 1/20 |")
        print("|---|---|---|---|---|---|---|---|")
        for shape in MEMORY:
            print(memory_row(*shape), flush=True)
        print(f"\n| dtype | V | T | D | dense, s, median of {RUNS} | fused, s | fused / dense | limit {TIME_LIMIT} |")
        print("|---|---|---|---|---|---|---|---|")
        for shape in TIME:
            print(time_row(*shape), flush=True)


if __name__ == "__main__":
    main()
