"""Training: collators, a callback for anybody's Trainer, the multi-objective DPO trainer, checkpoints."""

from loralign.training.callback import GeometryCallback
from loralign.training.checkpoint import is_whole, last_whole_checkpoint
from loralign.training.collator import ObjectiveCollator
from loralign.training.config import GeometryConfig
from loralign.training.engine import GeometryEngine
from loralign.training.guard_callback import GuardCallback
from loralign.training.guard_config import GuardConfig
from loralign.training.guard_engine import GuardData, GuardEngine
from loralign.training.guarded import GuardedSFTTrainer
from loralign.training.trainer import MultiObjectiveDPOTrainer

__all__ = [
    "GeometryCallback",
    "GeometryConfig",
    "GeometryEngine",
    "GuardCallback",
    "GuardConfig",
    "GuardData",
    "GuardEngine",
    "GuardedSFTTrainer",
    "MultiObjectiveDPOTrainer",
    "ObjectiveCollator",
    "is_whole",
    "last_whole_checkpoint",
]
