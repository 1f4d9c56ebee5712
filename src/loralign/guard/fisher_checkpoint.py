"""Sums of an unfinished Fisher estimation on the disk, so that an interrupted one goes on where it stood."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loralign.errors import StateError
from loralign.files import atomic_path

FORMAT_VERSION = 1


@dataclass
class FisherProgress:
    """How far one process has come.

    Attributes:
        passes: finished passes over the data.
        batches: batches of its own finished in the pass begun.
        samples: samples measured, over all passes.
        tokens: response tokens measured in the first pass.
    """

    passes: int = 0
    batches: int = 0
    samples: int = 0
    tokens: int = 0


class FisherCheckpoint:
    """The file of one process: all sums and, in its header, JSON with how far they go and what they are sums of.

    One file is replaced as a whole, so sums and progress always fit.

    Args:
        directory: where the file lies; every process of a group has one of its own in it.
        fingerprint: of everything that the sums depend on.
        process: number of the process.
    """

    def __init__(self, directory: Path, fingerprint: str, process: int = 0) -> None:
        self.path = directory / f"fisher-{process}.safetensors"
        self.fingerprint = fingerprint

    def save(self, progress: FisherProgress, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file.

        Raises:
            OutputError: it cannot be written.
        """
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        state = {"version": FORMAT_VERSION, "fingerprint": self.fingerprint, "progress": asdict(progress)}
        with atomic_path(self.path) as temporary:
            save_file(stored, temporary, metadata={"loralign": json.dumps(state)})

    def load(self) -> tuple[FisherProgress, dict[str, Tensor]]:
        """What was last saved; without a file, no progress and no tensors.

        Raises:
            StateError: the file is damaged, of another version, or of other settings, data or weights.
        """
        if not self.path.is_file():
            return FisherProgress(), {}
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads(file.metadata()["loralign"])
                self._check(state)
                return FisherProgress(**state["progress"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"the checkpoint cannot be read: {error}", place=str(self.path), fix="remove it to begin anew"
            ) from error

    def remove(self) -> None:
        """Remove the file, and its directory if nothing else is in it."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def _check(self, state: dict[str, object]) -> None:
        if state["version"] != FORMAT_VERSION or state["fingerprint"] != self.fingerprint:
            raise StateError(
                "the checkpoint is of an estimation with other settings, samples or weights",
                place=str(self.path),
                fix="repeat the call that wrote it, or remove it to begin anew",
            )
