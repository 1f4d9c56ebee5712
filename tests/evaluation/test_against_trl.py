from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from loralign.evaluation import preference_scores, score_pairs, tokenise_pairs
from tests.evaluation.models import build, character_tokenizer, conversational_pairs, perturb


# TRL sets the old name of a setting that transformers has renamed since.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_loss_accuracy_and_margin_are_those_of_dpo_trainer(tmp_path: Path) -> None:
    tokenizer, pairs = character_tokenizer(), conversational_pairs(8)
    trainer = DPOTrainer(
        model=build("llama"),
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            max_length=60,
            per_device_eval_batch_size=8,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    perturb(trainer.model, "default", 0.2, 3)
    theirs = trainer.evaluate()
    scores = score_pairs(trainer.model, tokenise_pairs(pairs, tokenizer, 60), progress=False)
    ours = preference_scores(scores, beta=0.3, resamples=10).overall.measures
    assert ours["accuracy_reward"].value == pytest.approx(theirs["eval_rewards/accuracies"])
    assert ours["margin"].value == pytest.approx(theirs["eval_rewards/margins"], abs=1e-4)
    assert ours["loss"].value == pytest.approx(theirs["eval_loss"], abs=1e-4)
    assert scores.log_prob[:, 0].mean() == pytest.approx(theirs["eval_logps/chosen"], rel=1e-5)
