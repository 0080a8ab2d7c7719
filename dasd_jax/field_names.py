"""What a field was called before, and what other trainers call it; the field nearest to a name that does not exist.

Besides, the fields of an evaluation, for what reads runs without JAX.
"""

import difflib
from collections.abc import Collection

# How held-out problems are answered and judged. Evaluations with other values are not compared. An answer that needs
# more memory than the verifier has is wrong, in training too.
EVALUATION = {
    "run.eval_problems", "run.eval_samples", "run.eval_temperature", "run.eval_top_k", "run.eval_top_p",
    "rollout.verifier_memory_mb",
}  # fmt: skip

# Levels of guards stood in `run` and `rollout` before they were a group of their own.
_LEVELS = ("entropy", "length", "repetition", "repel_kl", "arm", "equal_rewards")
_GAPS = ("logp_gap_mean_warn", "logp_gap_mean_max", "logp_gap_p999_max")
MOVED = {
    **{f"run.{level}_{kind}": f"guards.{level}_{kind}" for level in _LEVELS for kind in ("warn", "stop")},
    **{
        f"rollout.{name}": f"guards.{name}" for name in ("logp_gap_mean_warn", "logp_gap_mean_max", "logp_gap_p999_max")
    },
    "run.guard_window": "guards.window",
    "run.on_collapse": "guards.on_collapse",
    "run.skipped_steps_stop": "guards.skipped_steps_stop",
}

# Field → what TRL, verl, OpenRLHF, transformers and others call it.
_ELSEWHERE = {
    "model.weights": "model_name_or_path model_name model_path pretrained pretrained_model",
    "model.compute_dtype": "dtype torch_dtype precision bf16",
    "model.attention": "attn_implementation flash_attention flash_attn",
    "model.remat": "gradient_checkpointing enable_gradient_checkpointing activation_checkpointing remat_policy",
    "data.sources": "dataset datasets dataset_name data_path train_files train_data",
    "data.benchmarks": "eval_dataset eval_datasets val_files test_files eval_data",
    "data.heldout": "holdout val_size test_size",
    "data.shots": "few_shot fewshot num_shots n_shot",
    "data.instruction": "prompt_template",
    "data.system": "system_prompt system_message",
    "data.privileged_wording": "reprompt_template solution_template",
    "data.transition": "transition_prompt",
    "data.verifier": "scorer reward_fn reward_func reward_funcs reward_function custom_reward_function compute_score",
    "rollout.problems": "batch_size train_batch_size per_device_train_batch_size global_batch_size num_prompts prompts",
    "rollout.rollouts": "group_size num_generations num_samples n_samples_per_prompt num_return_sequences samples n k",
    "rollout.prompt_length": "max_prompt_length max_prompt_len prompt_max_len",
    "rollout.max_new_tokens": "max_length max_tokens max_completion_length max_response_length response_length max_len",
    "rollout.resample": "dynamic_sampling oversample max_num_gen_batches",
    "rollout.verifier_workers": "num_workers reward_workers",
    "rollout.verifier_deadline_s": "timeout reward_timeout",
    "objective.method": "algorithm algo adv_estimator advantage_estimator loss_type",
    "objective.beta": "kl_coef kl_coeff kl_beta kl_weight teacher_weight distill_weight",
    "objective.clip_low": "clip_eps clip_epsilon clip_range cliprange clip_ratio clip_ratio_low eps_clip",
    "objective.clip_high": "clip_ratio_high epsilon_high",
    "objective.truncated": "mask_truncated_completions",
    "objective.overlong_tokens": "overlong_buffer overlong_buffer_len soft_overlong",
    "optim.learning_rate": "lr peak_lr max_lr actor_learning_rate",
    "optim.schedule": "scheduler lr_schedule lr_scheduler lr_scheduler_type",
    "optim.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_ratio",
    "optim.weight_decay": "wd",
    "optim.b1": "beta1 adam_beta1",
    "optim.b2": "beta2 adam_beta2",
    "optim.eps": "adam_epsilon adam_eps",
    "optim.grad_clip": "max_grad_norm gradient_clip gradient_clipping clip_grad max_norm",
    "optim.minibatches": "mini_batch_size ppo_mini_batch_size num_mini_batches ppo_epochs",
    "optim.microbatches": "gradient_accumulation_steps grad_accum accumulation_steps micro_batch_size",
    "mesh.data": "dp data_parallel data_parallel_size",
    "mesh.tensor": "tp tensor_parallel tensor_parallel_size model_parallel",
    "run.steps": "epochs num_epochs num_train_epochs max_steps total_steps num_steps train_steps iterations",
    "run.seed": "random_seed",
    "run.checkpoint_every": "save_steps save_every save_freq save_interval checkpoint_steps",
    "run.keep_checkpoints": "save_total_limit max_to_keep",
    "run.eval_every": "eval_steps eval_freq test_freq eval_interval",
}
ELSEWHERE = {other: field for field, others in _ELSEWHERE.items() for other in others.split()}


def nearest(name: str, fields: Collection[str]) -> str:
    """The field that a person may have meant; "" if none comes near.

    Args:
        name: "group.field", or a field without its group.
        fields: "group.field" each.
    """
    name = name.lower().replace("-", "_")
    group, _, own = name.rpartition(".")
    by_own = {field.partition(".")[2]: field for field in reversed(list(fields))}
    moved = {old.partition(".")[2]: new for old, new in MOVED.items()}
    inside = [field.partition(".")[2] for field in fields if field.partition(".")[0] == group]
    if name in fields:
        return name
    for known in (by_own, ELSEWHERE, moved):
        if known.get(own) in fields:
            return known[own]
    for names, cutoff in ((inside, 0.6), (by_own, 0.7)):
        if found := difflib.get_close_matches(own, names, 1, cutoff):
            return f"{group}.{found[0]}" if names is inside else by_own[found[0]]
    return next(iter(difflib.get_close_matches(name, fields, 1, 0.6)), "")
