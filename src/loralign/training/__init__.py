"""Training: collators, a callback for anybody's Trainer, the multi-objective DPO trainer, checkpoints."""

from loralign.training.callback import GeometryCallback
from loralign.training.checkpoint import is_whole, last_whole_checkpoint
from loralign.training.collator import ObjectiveCollator
from loralign.training.config import GeometryConfig
from loralign.training.engine import GeometryEngine
from loralign.training.trainer import MultiObjectiveDPOTrainer

__all__ = [
    "GeometryCallback",
    "GeometryConfig",
    "GeometryEngine",
    "MultiObjectiveDPOTrainer",
    "ObjectiveCollator",
    "is_whole",
    "last_whole_checkpoint",
]
