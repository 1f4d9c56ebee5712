"""A trainer's checkpoints, whole or absent, and resuming from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from loralign.errors import OutputError, StateError
from loralign.training.checkpoint import clear_unfinished, is_whole, last_whole_checkpoint, publish, saving_directory


@runtime_checkable
class CheckpointedCallback(Protocol):
    """A trainer's callback whose state belongs into the checkpoints."""

    def resume_from(self, checkpoint: Path | None) -> None:
        """Say which checkpoint the next call of ``train`` resumes from."""

    def save_state(self, directory: Path) -> None:
        """Write the state into a checkpoint that is being made."""


class WholeCheckpoints(Trainer):
    """Mixin: a checkpoint is written beside its place, flushed, and then given its name in one rename.

    A run killed at any moment therefore leaves whole checkpoints only, and a disk that fills up leaves the previous
    one as it was.
    """

    _saving: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the last whole checkpoint, or starts anew if there is none.

        Raises:
            StateError: the named checkpoint is not whole.
        """
        output = Path(self.args.output_dir)
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = last_whole_checkpoint(output)
        elif resume_from_checkpoint:
            checkpoint = Path(str(resume_from_checkpoint))
            if not is_whole(checkpoint):
                last = last_whole_checkpoint(output)
                raise StateError(
                    "the checkpoint is not whole", place=str(checkpoint), fix=f"resume from {last or 'the beginning'}"
                )
        if checkpoint is not None and self._is_finished(checkpoint):
            # The base class would train one step more before it notices.
            self._load_from_checkpoint(str(checkpoint))
            return None
        for callback in self._checkpointed():
            callback.resume_from(checkpoint)
        return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)

    def _is_finished(self, checkpoint: Path) -> bool:
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.max_steps > 0:
            return bool(self.state.global_step >= self.args.max_steps)
        return bool((self.state.epoch or 0) >= self.args.num_train_epochs)

    def _checkpointed(self) -> list[CheckpointedCallback]:
        return [one for one in self.callback_handler.callbacks if isinstance(one, CheckpointedCallback)]

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving) if self._saving is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        saving = saving_directory(output)
        if self.accelerator.is_main_process:
            clear_unfinished(output)
        self.accelerator.wait_for_everyone()
        self._saving = saving
        try:
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step == self.state.global_step:
                # The base class knows it under the name that it is about to lose.
                self.state.best_model_checkpoint = str(output / name)
                if self.args.should_save:
                    self.state.save_to_json(str(saving / name / TRAINER_STATE_NAME))
            if self.accelerator.is_main_process:
                for callback in self._checkpointed():
                    callback.save_state(saving / name)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                publish(saving / name, output / name)
                saving.rmdir()
        except (OSError, SafetensorError, RuntimeError, OutputError) as error:
            if not _is_write_failure(error):
                raise
            reason = error.problem if isinstance(error, OutputError) else error
            last = last_whole_checkpoint(output)
            if self.accelerator.is_main_process:
                clear_unfinished(output)
            raise OutputError(
                f"the checkpoint cannot be written: {reason}",
                place=str(output / name),
                fix=f"free some space and resume from {last or 'the beginning'}",
            ) from error
        finally:
            self._saving = None
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


def _is_write_failure(error: Exception) -> bool:
    text = str(error).lower()
    # The last is what torch says when it closes an archive that it could not write.
    from_torch = "writ" in text or "stream" in text or "inline_container" in text
    return isinstance(error, (OSError, SafetensorError, OutputError)) or from_torch
