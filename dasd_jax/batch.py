"""The arrays that pass between the rooms, and the glossary of letters that names their axes.

    B  problems in a batch         G  rollouts per problem         rows = B*G, problem-major
    P  student-prompt width        Q  teacher-prompt width         R  response width
    D  model width                 N  query heads                  K  key/value heads
    H  head width                  F  feed-forward width           V  vocabulary
    L  layers                      S  new tokens of one forward pass

Prompts are left-padded and responses right-padded. `*_mask` is bool, True = keep. `logp`, `entropy` and `kl` are in
nats, float32. A row whose mask is all False is padding and contributes nothing.
"""

from typing import Any

import jax
from flax import struct

Array = jax.Array
Params = dict[str, Any]


@struct.dataclass
class PromptBatch:
    """B problems as the student sees them."""

    student_prompt: Array  # i32[B, P], left-padded
    student_prompt_mask: Array  # bool[B, P]
    example_id: Array  # i32[B], unique across mixed sources and within a batch of the data


@struct.dataclass
class TeacherBatch:
    """What a teacher reads in the place of the student's prompts; built after verification.

    One prompt a problem, or K a rollout where the context is made of rollouts. A teacher without context reads the
    student's own prompt, and the gap is 0.
    """

    teacher_prompt: Array  # i32[B, Q] or [B, G, K, Q], left-padded
    teacher_prompt_mask: Array  # bool, likewise
    shown: Array  # bool[B] or [B, G, K], False where there is no context
    weight: Array  # f32, like shown: of each of several prompts, 1 unless a method retrieves them


@struct.dataclass
class RolloutBatch:
    """What the policy wrote, or reference responses in its place: rows = B*G, problem-major."""

    response: Array  # i32[rows, R], right-padded
    response_mask: Array  # bool[rows, R]; includes the stop token, excludes padding
    sampled_logp: Array | None  # f32[rows, R], log-probability of the token as it was sampled; None of references
    finished: Array  # bool[rows], a stop token was written


@struct.dataclass
class Outcomes:
    """What the verifier's verdicts make of rollouts; [rows] each."""

    correct: Array  # f32, 0 or 1
    reward: Array  # f32, the same less the penalty for length
    in_loss: Array  # bool, False for rollouts that count in their group but not in the loss


@struct.dataclass
class TrainState:
    """All that a run must not lose. Checkpoints, abstract states and memory planning are derived from its fields."""

    step: Array  # i32[], rollout batches learned from
    params: Params
    opt_state: Any
    batches_drawn: Array  # i32[], the data position over the random-access pipeline
    teachers: dict[str, Params]  # copies of the weights that teachers read, by policy (learner/teachers.py)
