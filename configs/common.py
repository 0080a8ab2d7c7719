"""Every field of a configuration: what it means, its unit or range, and the value most runs want.

A config file calls `base()` and changes what differs. `--config.GROUP.FIELD=VALUE` on a command line does the same.
"""

import ml_collections


def base() -> ml_collections.ConfigDict:
    """The seven groups with their defaults."""
    config = ml_collections.ConfigDict()

    config.model = ml_collections.ConfigDict(
        {
            "weights": "",  # a .gguf file, a Hugging Face folder or a checkpoint; random: made from `preset`
            "sha256": "",  # expected checksum of a .gguf file, hexadecimal; empty: not checked
            "preset": "",  # architecture of random weights, a name of dasd_jax/model/presets.py; empty: from `weights`
            "tokenizer": "",  # "byte", a .gguf, .model or tokenizer.json file, or a folder; empty: from `weights`
            "compute_dtype": "bfloat16",  # bfloat16 | float32: activations and KV cache; parameters are float32
            "attention": "auto",  # auto | xla | splash (TPU) | cudnn (GPU): auto takes the last two in bfloat16
            "remat": "full",  # none | dots | full: what the backward pass computes again instead of storing
        }
    )
    config.data = ml_collections.ConfigDict(
        {
            "sources": (),  # "gym:TASK?field=value&size=N&seed=S", "jsonl:FILE", "tfds:DIR?split=train"; duplicates go
            "benchmarks": (),  # specs as in sources: what is evaluated; their problems are never trained on
            "heldout": 128,  # problems of smallest hash, never trained on; without benchmarks evaluated, and at least 1
            "shots": 0,  # worked examples before the problem, 0 or more, taken from the training problems
            "instruction": "boxed",  # boxed | answer_line: how the answer is asked for
            "privileged": "answer",  # answer | solution | hint | sibling (verified rollout): what the teacher is shown
            "thinking": "default",  # default | on | off: told to chat templates that know it, on both sides
        }
    )
    config.rollout = ml_collections.ConfigDict(
        {
            "problems": 128,  # problems a rollout batch
            "rollouts": 8,  # responses to each problem, at least 2
            "prompt_length": 1024,  # tokens; problems with a longer student prompt are dropped and counted
            "teacher_prompt_length": 1536,  # tokens, the same for the teacher's prompt
            "max_new_tokens": 8192,  # tokens a response
            "temperature": 1.0,  # > 0; statistics are of log_softmax(logits / temperature)
            "top_k": 0,  # 0 in training: truncated sampling has no matching score pass
            "top_p": 1.0,  # 1.0 in training, for the same reason
            "resample": 0,  # further batches a step that replace groups whose rewards are all equal; 0: none
            "slots": 0,  # rows that a device decodes at a time, the next ones taking free slots; 0: as many as fit
            "verifier_workers": 8,  # processes, 1 to 1024
            "verifier_deadline_s": 5.0,  # seconds of CPU an answer, 0.05 to 3600; what needs more is wrong
            "verifier_memory_mb": 2048,  # MiB of address space a process, 512 to 1048576
            "logp_gap_mean_warn": 0.01,  # nats, mean |sampler - score pass| over run.guard_window; a higher one is said
            "logp_gap_mean_max": 0.02,  # nats, that of a step; the run stops above it
            "logp_gap_p999_max": 0.5,  # nats, its 99.9th percentile; the run stops above it
        }
    )
    config.objective = ml_collections.ConfigDict(
        {
            "method": "dasd",  # dasd | grpo | sft
            "form": "sampled",  # sampled: credit of the drawn token | full: its expectation over the vocabulary
            "rho": 0.2,  # share in (0, 1) of a response's tokens that are forks
            "rho_side": "top",  # top: the rho share of highest entropy | bottom: threshold at quantile rho
            "beta": 0.1,  # >= 0, weight of the teacher's term; 0 is GRPO
            "clip": 3.0,  # >= 0, bound of the scaled gap; 0: none
            "s_min": 0.02,  # nats, > 0, floor of the gap's scale
            "scale": "mean_abs",  # mean_abs | mad | std | none: what divides a response's gap
            "gate": True,  # sigmoid(|scaled gap| - 1) on the teacher's term
            "route": "signed",  # signed | hard | attract_only | repel_only | conformity | novelty
            "min_tokens": 4,  # tokens; shorter responses are not routed
            "min_spread": 1e-4,  # nats; responses whose entropies deviate less are not routed
            "dense_on_zero_adv": True,  # keep the teacher's term in groups whose rewards are all equal
            "repel_kl_max": 0.0,  # nats; tokens with a larger KL(student || teacher) are not repelled; 0: no bound
            "clip_low": 0.2,  # in (0, 1): ratios below 1 - clip_low stop counting
            "clip_high": 0.2,  # > 0: ratios above 1 + clip_high stop counting
            "truncated": "zero",  # zero | score | drop_from_loss: what an unfinished response is worth
            "overlong_tokens": 0,  # tokens before the limit over which the reward falls by up to 1; 0: no penalty
            "token_chunk": 1024,  # tokens a device whose logits exist at one time
        }
    )
    config.optim = ml_collections.ConfigDict(
        {
            "learning_rate": 3e-6,  # > 0, peak
            "schedule": "cosine",  # cosine (to 0 at the end of the run) | constant
            "warmup_steps": 0,  # optimiser steps, linear from learning_rate / warmup_steps
            "weight_decay": 0.0,  # >= 0, decoupled
            "b1": 0.9,  # in [0, 1)
            "b2": 0.95,  # in [0, 1)
            "eps": 1e-8,  # > 0
            "grad_clip": 1.0,  # > 0, global norm
            "moment_dtype": "float32",  # float32 | bfloat16: of Adam's first moment
            "minibatches": 4,  # optimiser steps a rollout batch; divides rollout.problems
            "microbatches": 1,  # parts of a minibatch, by length, whose gradients are summed; memory and padding fall
        }
    )
    config.mesh = ml_collections.ConfigDict(
        {
            "data": 1,  # devices that split rows and copy parameters
            "fsdp": -1,  # devices that split rows and parameters; -1: all that are left
            "tensor": 1,  # devices that split heads, feed-forward and vocabulary
        }
    )
    config.run = ml_collections.ConfigDict(
        {
            "steps": 200,  # rollout batches
            "seed": 0,  # 0 to 2147483647: order of the data, sampling, random weights
            "checkpoint_every": 10,  # steps
            "keep_checkpoints": 2,  # the newest N stay, and the best one of those evaluated (run.eval_every)
            "keep_every": 0,  # steps, a multiple of checkpoint_every: of every so many one stays for good; 0: none
            "grace_s": 25.0,  # seconds after a SIGTERM at which a run ends wherever it is
            "eval_every": 0,  # steps between held-out evaluations; 0: only before and after
            "eval_problems": 128,  # of each benchmark, or held out and at most data.heldout; 0: all of them
            "eval_samples": 16,  # responses to each of them (K of Avg@K and Pass@k)
            "eval_temperature": 1.0,  # >= 0; 0: arg-max
            "eval_top_k": 0,  # tokens; 0: all
            "eval_top_p": 0.9,  # in (0, 1]
            "logged_rollouts": 4,  # rollouts a step written to samples.jsonl, token by token
            "skipped_steps_stop": 3,  # steps in a row with a skipped update (not finite) at which a run stops
            "guard_window": 5,  # steps whose means the guards below look at, at least 1; a level of 0 is off
            "entropy_warn": 0.05,  # nats a token; a lower mean entropy of the policy is said
            "entropy_stop": 0.005,  # the same, acted upon as `on_collapse` says
            "length_warn": 0.25,  # of the mean length at step 1; shorter responses are said
            "length_stop": 0.05,  # the same, acted upon as `on_collapse` says
            "repetition_warn": 0.5,  # in [0, 1], share of 4-grams that a response already holds; a higher one is said
            "repetition_stop": 0.9,  # the same, acted upon as `on_collapse` says
            "repel_kl_warn": 5.0,  # nats, mean KL(student || teacher) of repelled tokens; a higher one is said
            "repel_kl_stop": 0.0,  # the same, acted upon as `on_collapse` says
            "arm_warn": 0.01,  # the weaker arm's share of the router's mass (routes with two); a lower one is said
            "arm_stop": 0.0,  # the same, acted upon as `on_collapse` says
            "equal_rewards_warn": 10.0,  # steps in a row in which the rewards of every group are equal; more are said
            "equal_rewards_stop": 0.0,  # the same; they always stop
            "on_collapse": "stop",  # stop | anneal: halve the teacher's weight at every step beyond a level (dasd)
            "profile_step": 0,  # the step whose jax.profiler trace is written to profile/; 0: none
        }
    )
    return config.lock()
