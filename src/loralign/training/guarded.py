"""Supervised fine-tuning with the guard: TRL's SFTTrainer and a callback."""

from __future__ import annotations

import warnings
from typing import Any

from trl import SFTTrainer

from loralign.guard import AlignmentSubspace
from loralign.training.guard_callback import GuardCallback
from loralign.training.guard_config import GuardConfig
from loralign.training.guard_engine import GuardData
from loralign.training.saving import WholeCheckpoints


class GuardedSFTTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's ``SFTTrainer`` for a LoRA adapter whose alignment-critical part is held (docs/adapting.md).

    Everything that ``SFTTrainer`` takes works as there. Added are the guard and checkpoints that are whole or absent,
    from which a run resumes exactly.

    Args:
        subspace: the alignment-critical subspace of the model; ``None`` trains plain LoRA, its drift measured where
            ``guard_data`` has a probe.
        guard: what to do when.
        guard_data: what to measure on: the probe set, the task's curvature, re-estimation.
        **kwargs: as for ``SFTTrainer``.
    """

    _tag_names = ("trl", "sft", "loralign")
    _name = "Guarded SFT"

    def __init__(
        self,
        *args: Any,
        subspace: AlignmentSubspace | None = None,
        guard: GuardConfig | None = None,
        guard_data: GuardData | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.guard_callback: GuardCallback | None = None
        if subspace is not None or (guard_data is not None and guard_data.probe):
            self.guard_callback = GuardCallback(subspace, guard, guard_data)
            self.guard_callback.install(self)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # The loop reads names that transformers itself has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return super()._inner_training_loop(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing here: the run writes a card of its own once it knows its scores."""
