"""The arrays passed between the packages, and the letters that name their axes.

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
    """Teacher prompts, which replace the student's prompts; built after verification.

    One prompt per problem, K per problem if they are retrieved, or K per rollout if the context is made from rollouts;
    in the shapes below G is 1 for the second. A teacher without context gets the student's prompt, and the gap is 0.
    """

    teacher_prompt: Array  # i32[B, Q] or [B, G, K, Q], left-padded
    teacher_prompt_mask: Array  # bool, likewise
    shown: Array  # bool[B] or [B, G, K], False if there is no context
    weight: Array  # f32, shaped like shown: similarity by which each was retrieved, else 1

    @property
    def of_rollouts(self) -> bool:
        """Whether each rollout has prompts of its own."""
        return self.shown.ndim > 1 and self.shown.shape[1] > 1


@struct.dataclass
class RolloutBatch:
    """Responses sampled from the policy, or reference responses: rows = B*G, problem-major."""

    response: Array  # i32[rows, R], right-padded
    response_mask: Array  # bool[rows, R]; includes the stop token, excludes padding
    sampled_logp: Array | None  # f32[rows, R], log-probability under the sampler; None for reference responses
    sampled_entropy: Array | None  # f32[rows, R], of the distribution that the token was drawn from; likewise
    finished: Array  # bool[rows], the response ends with a stop token


@struct.dataclass
class Outcomes:
    """Rewards and masks derived from the verifier's verdicts; [rows] each."""

    correct: Array  # f32, 0 or 1
    reward: Array  # f32, correct minus the length penalty
    in_loss: Array  # bool, False for rollouts that count in group statistics but not in the loss


@struct.dataclass
class TrainState:
    """The complete state of a run. Checkpoints, abstract states and memory estimates are derived from its fields."""

    step: Array  # i32[], rollout batches trained on
    params: Params
    opt_state: Any
    batches_drawn: Array  # i32[], data position in the random-access pipeline
    teachers: dict[str, Params]  # weight copies that teachers use, by policy (learner/teachers.py)
