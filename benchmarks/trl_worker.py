"""The other side of trl_step.py, run by the python of an environment that has trl: needs no dasd_jax.

TRL's trainers as they are; what is added reads the clock, keeps the log-probabilities, and waits for the next line
before a step begins. Where SDPO has none to keep, the time that they take is left out. What goes in and out:
whole_steps.py.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl.trainer.utils import selective_log_softmax

NEVER = 2**31 - 1  # no token has this id: nothing ends a response before its limit


def now() -> torch.Tensor:
    """[the clock, that of the processors], seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


class Watched:
    """What both trainers have in common: the clock, and responses in the order of the problems."""

    def begin(self) -> None:
        """A step begins."""
        self.start = now()
        self.logp, self.teacher_prompt, self.aside = {}, None, 0

    def generated(self, responses: list[list[int]], start: torch.Tensor) -> None:
        """Responses have been sampled since `start`."""
        self.rollout, self.responses = now() - start, responses

    def scored(self, rows: torch.Tensor, logp: torch.Tensor) -> None:
        """Log-probabilities of some rows."""
        self.logp |= zip(rows.tolist(), logp.detach().tolist(), strict=True)

    def seconds(self) -> dict:
        """Of the phases of the step that ends now."""
        whole = now() - self.start - self.aside
        phases = {"rollout": self.rollout, "update": whole - self.rollout, "whole": whole}
        return {name: value.tolist() for name, value in phases.items()}


class Grpo(Watched, GRPOTrainer):
    """GRPO, watched."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        start = now()
        done = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.generated(done[0], start)
        return done

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        return batch | {"row": torch.arange(len(inputs))}  # the parts of a batch are drawn at random

    def _compute_loss(self, model, inputs):
        self.rows = inputs["row"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        done = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.scored(self.rows, done[0])
        return done


class Sdpo(Watched, SDPOTrainer):
    """SDPO, watched."""

    def _generate_transformers(self, prompt_ids):
        start = now()
        done = super()._generate_transformers(prompt_ids)
        self.generated(done[1], start)
        return done

    def _prepare_training_batch(self, inputs):
        batch = super()._prepare_training_batch(inputs)
        self.teacher_prompt = batch["teacher_input_ids"].shape[1] - batch["completion_ids"].shape[1]
        return batch | {"row": torch.arange(len(inputs))}

    def _compute_teacher_student_logits(self, model, teacher_model, inputs):
        logits = super()._compute_teacher_student_logits(model, teacher_model, inputs)
        start = now()
        with torch.no_grad():
            self.scored(inputs["row"], selective_log_softmax(logits.student_logits, logits.completion_ids))
        self.aside += now() - start
        return logits


class Turns(TrainerCallback):
    """Takes a line before each step and answers it after."""

    def __init__(self, trainer: Watched, output):
        self.trainer, self.output = trainer, output

    def on_step_begin(self, args, state, control, **kwargs):
        if not sys.stdin.readline():
            sys.exit()
        self.trainer.begin()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = self.trainer.seconds()

    def on_log(self, args, state, control, logs, **kwargs):
        if "grad_norm" not in logs:
            return
        trainer = self.trainer
        answer(
            self.output,
            seconds=self.seconds,
            tokens=trainer.responses,
            logp=[trainer.logp[row] for row in range(len(trainer.responses))],
            grad_norm=logs["grad_norm"],
            teacher_prompt=trainer.teacher_prompt,
        )


def reward(completions, **kwargs) -> list[float]:
    """0 and 1 in turn."""
    return [float(row % 2) for row in range(len(completions))]


def main() -> None:
    """Makes the trainer and trains."""
    # Nothing else may come between the answers.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job = json.loads(sys.stdin.readline())
    trainer_class, config_class, more = {
        "grpo": (Grpo, GRPOConfig, {"loss_type": "dapo", "beta": 0.0}),
        # Live: the student's weights, as our teacher's are, and no copy of them to keep up to date.
        "sdpo": (Sdpo, SDPOConfig, {"teacher_model_kind": "live", "distillation_mode": "sampled_token"}),
    }[job["method"]]
    parts = job["problems"] * job["rollouts"] // job["rows"]
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            num_generations=job["rollouts"],
            max_completion_length=job["tokens"],
            temperature=1.0,
            generation_kwargs={"eos_token_id": NEVER},
            per_device_train_batch_size=job["rows"],
            gradient_accumulation_steps=parts,
            steps_per_generation=parts,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            max_steps=job["steps"],
            learning_rate=job["rate"],
            lr_scheduler_type="constant",
            adam_beta1=job["b1"],
            adam_beta2=job["b2"],
            adam_epsilon=job["eps"],
            weight_decay=job["decay"],
            max_grad_norm=job["clip"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more,
        )
        trainer = trainer_class(
            model=job["model"],
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": chat} for chat in job["chats"]]),
        )
        trainer.eos_token_ids = [NEVER]
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Turns(trainer, output))
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
        prompts = [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in job["chats"]
        ]
        versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch"))
        answer(output, versions=versions, prompts=prompts)
        trainer.train()


def answer(output, **content) -> None:
    """Prints a line."""
    print(json.dumps(content), file=output, flush=True)


if __name__ == "__main__":
    main()
