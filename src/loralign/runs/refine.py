"""``loralign refine``: rewrite an adapter's factors, with or without new directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from loralign.errors import ConfigError, OutputError
from loralign.files import write_json
from loralign.geometry import RefinementReport, refine
from loralign.models import load_adapter, portable_base_name
from loralign.runs.diagnose import measuring_trainer
from loralign.runs.opening import open_base
from loralign.runs.output import save_adapter
from loralign.training import MultiObjectiveDPOTrainer

OFFLINE_MODES = ("condition", "gradient", "balanced")


def refine_adapter(
    adapter: str,
    output: Path,
    *,
    mode: str = "condition",
    sources: Sequence[str] = (),
    pairs: int = 24,
    tolerance: float = 1e-3,
    scale: str = "balanced",
    settings: Sequence[str] = (),
) -> RefinementReport:
    """Refine a finished adapter and write the result as a new one.

    Args:
        adapter: a PEFT LoRA directory.
        output: where the refined adapter goes; must not exist.
        mode: ``condition`` needs no data; ``gradient`` and ``balanced`` do. Accumulated updates are known only while
            training.
        sources: labelled pairs; given, the attenuation is measured before and after.
        pairs: pairs measured.
        tolerance: share of a layer's squared norm that may be dropped to free rows.
        scale: ``balanced`` or ``rows``.
        settings: further flags of ``loralign align``.

    Raises:
        LoralignError: any fault of adapter or data; ``output`` exists.
    """
    if output.exists():
        raise OutputError("exists", place=str(output), fix="choose another place with --output")
    if mode not in OFFLINE_MODES:
        raise ConfigError(f"mode {mode!r} is not possible here", fix=f"use one of {', '.join(OFFLINE_MODES)}")
    if mode != "condition" and not sources:
        raise ConfigError(f"mode {mode!r} measures gradients", place="--data", fix="name the preference data")
    if not sources:
        loaded = open_base(adapter, None, "auto")
        model, tokenizer, source = load_adapter(adapter, loaded)
        report = refine(model, mode=mode, tolerance=tolerance, scale=scale)
        save_adapter(model, tokenizer, portable_base_name(source.name), output)
    else:
        with TemporaryDirectory() as scratch:
            trainer = measuring_trainer(adapter, sources, pairs, 16, (), settings, Path(scratch))
            report = _refine_measured(trainer, mode, pairs, tolerance, scale)
            base = trainer.model.peft_config["default"].base_model_name_or_path or ""
            save_adapter(trainer.model, trainer.processing_class, portable_base_name(base), output)
    write_json(output / "refinement.json", report.to_json())
    return report


def _refine_measured(
    trainer: MultiObjectiveDPOTrainer, mode: str, pairs: int, tolerance: float, scale: str
) -> RefinementReport:
    batches = max(1, pairs // trainer.args.per_device_train_batch_size)
    callback = trainer.geometry_callback
    callback.attach(trainer.model, trainer.args.seed)
    engine = callback.running
    try:
        before = trainer.measure_geometry(batches)
        report = refine(
            trainer.model,
            mode=mode,
            capture=None if mode == "condition" else engine.capture,
            target=trainer.target,
            tolerance=tolerance,
            scale=scale,
            seed=trainer.args.seed,
        )
        return report.measured(before, trainer.measure_geometry(batches))
    finally:
        callback.close()
