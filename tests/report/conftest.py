"""A synthetic run directory as realistic as a report needs: 30 blocks of 7 modules, 3 objectives, 60 steps."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

OBJECTIVES = ("helpful", "honest", "harmless")
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LAYERS = tuple(f"base_model.model.model.layers.{depth}.{module}" for depth in range(30) for module in MODULES)


def measurement(step: int, generator: random.Random) -> dict[str, Any]:
    grown = 0.155 + 0.19 * (1 - math.exp(-step / 18)) + (0.12 if step >= 30 else 0)
    gamma = {name: grown * (1 + 0.04 * index * step / 60) for index, name in enumerate(OBJECTIVES)}
    shares = {name: value / sum(gamma.values()) for name, value in gamma.items()}
    cosine = {
        space: [[1.0, near, far], [near, 1.0, near / 2], [far, near / 2, 1.0]]
        for space, near, far in (("full", 0.22, -0.06), ("accessible", 0.31, -0.19), ("euclidean", 0.12, -0.04))
    }
    record: dict[str, Any] = {
        "kind": "measurement",
        "step": step,
        "objectives": list(OBJECTIVES),
        "attenuation": gamma,
        "weights": {name: 1 / value * sum(gamma.values()) / 3 for name, value in gamma.items()},
        "directional_distortion": 1 - grown,
        "step_distortion": 1 - grown * 0.55 if step else None,
        "tradeoff": {
            "total_variation": sum(abs(share - 1 / 3) for share in shares.values()) / 2,
            "spread": max(gamma.values()) / min(gamma.values()),
            "intended": dict.fromkeys(OBJECTIVES, 1 / 3),
            "realised": shares,
        },
        "cosine": cosine,
        "gradient_norm": {"full": dict(zip(OBJECTIVES, (3.3, 2.2, 4.3), strict=True))},
        "samples": dict.fromkeys(OBJECTIVES, 2),
        "tokens": dict.fromkeys(OBJECTIVES, 240),
    }
    if step % 20 == 0:
        record["layer_attenuation"] = {
            layer: {
                name: min(
                    1.0, gamma[name] * (0.6 + 0.1 * (index % 7) + 0.006 * (index // 7)) * generator.uniform(0.9, 1.1)
                )
                for name in OBJECTIVES
            }
            for index, layer in enumerate(LAYERS)
        }
    return record


def refinement(step: int) -> dict[str, Any]:
    return {
        "kind": "refinement",
        "step": step,
        "mode": "balanced",
        "energy_moved": 0.0173,
        "function_change": 0.0021,
        "attenuation_before": dict.fromkeys(OBJECTIVES, 0.31),
        "attenuation_after": dict.fromkeys(OBJECTIVES, 0.44),
        "layers": [
            {
                "name": layer,
                "energy_moved": 0.017,
                "function_change": 0.002,
                "rank": 16,
                "spectrum": [1.2, 0.7, 0.2, 0.1, 0.01],
            }
            for layer in LAYERS
        ],
    }


def training_step(step: int, generator: random.Random) -> dict[str, Any]:
    values = {}
    for index, name in enumerate(OBJECTIVES):
        progress = 1 - math.exp(-step / (25 + 10 * index))
        values[name] = {
            "loss": 0.69 - 0.18 * progress + generator.gauss(0, 0.05),
            "accuracy": generator.choice([0.5, 1.0, 1.0]) if generator.random() < 0.5 + 0.4 * progress else 0.5,
            "margin": 0.5 * progress + generator.gauss(0, 0.15),
        }
    loss = sum(entry["loss"] for entry in values.values()) / 3
    return {"kind": "step", "step": step, "loss": loss, "objectives": values, "learning_rate": 1e-4 * (1 - step / 60)}


def score_set(accuracies: tuple[float, ...], drift: float) -> dict[str, Any]:
    def metrics(accuracy: float) -> dict[str, Any]:
        spread = {
            "accuracy_reward": 0.07,
            "accuracy_normalised": 0.08,
            "accuracy_summed": 0.08,
            "margin": 0.05,
            "loss": 0.02,
            "kl_policy_reference": drift / 10,
        }
        values = {
            "accuracy_reward": 0.5 if drift == 0 else accuracy + 0.08,
            "accuracy_normalised": accuracy,
            "accuracy_summed": accuracy - 0.02,
            "margin": 2 * (accuracy - 0.5),
            "loss": 1.19 - accuracy,
            "kl_policy_reference": drift,
            "kl_reference_policy": drift * 1.1,
            "log_ratio": drift * 1.2,
        }
        return {
            key: {"value": value, "low": value - spread.get(key, 0.01), "high": value + spread.get(key, 0.01)}
            for key, value in values.items()
        }

    return {
        "format": "loralign.scores",
        "version": 1,
        "kind": "scores",
        "objectives": {
            name: {"pairs": 96, "measures": metrics(value)} for name, value in zip(OBJECTIVES, accuracies, strict=True)
        },
        "overall": {"pairs": 288, "measures": metrics(sum(accuracies) / 3)},
    }


def about() -> dict[str, Any]:
    return {
        "version": 1,
        "command": ["loralign", "align", "--config", "recipes/smollm2-135m.yaml", "--output_dir", "runs/my first run"],
        "model": "SmolLM2-135M-Instruct",
        "objectives": list(OBJECTIVES),
        "target_weights": dict.fromkeys(OBJECTIVES, 1.0),
        "weighting": "geo",
        "config": {
            "training": {"learning_rate": 1e-4, "max_steps": 60, "loss_type": ["sigmoid"], "beta": 0.1},
            "geometry": {"measure_every": 2, "sketch_size": 32, "refine_every": 30, "smoothing": None},
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        },
        "data": {
            "train": {"counts": dict.fromkeys(OBJECTIVES, 96), "fingerprint": "9f2c41d0", "sources": ["builtin"]},
            "validation": {"counts": dict.fromkeys(OBJECTIVES, 32), "fingerprint": "17be03aa", "sources": ["builtin"]},
            "lengths": {"truncated": 3, "dropped": 0, "max_length": 128},
        },
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "trl": "1.16.0",
            "peft": "0.21.2",
            "loralign": "0.1.0",
            "device": "cpu",
            "cores": 2,
        },
        "seconds": 372.4,
        "seed": 0,
        "status": "finished",
    }


def samples() -> list[dict[str, str]]:
    return [
        {
            "objective": name,
            "prompt": f"How do I plan a week of dinners for two on a budget? (question {number} on being {name})",
            "before": "Sure!\n\n1. Make a list.\n2. Buy what is on it.\n" * 3,
            "after": "Start from what you already have. Then choose three cheap bases (rice, pasta, potatoes) ...\n"
            * 4,
        }
        for number, name in enumerate(OBJECTIVES * 2)
    ]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def write_run(directory: Path) -> Path:
    generator = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for step in range(61):
        if step % 2 == 0:
            records.append(measurement(step, generator))
        if step == 30:
            records.append(refinement(step))
        records.append(training_step(step, generator))
    write_lines(directory / "geometry.jsonl", records)
    scores = {
        "version": 1,
        "before": score_set((0.52, 0.49, 0.55), 0.0),
        "after": score_set((0.59, 0.71, 0.66), 0.021),
        "reference": score_set((0.52, 0.49, 0.55), 0.0),
    }
    for name, value in (("run.json", about()), ("scores.json", scores), ("samples.json", samples())):
        (directory / name).write_text(json.dumps(value), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "my-run")


@pytest.fixture
def own_run(tmp_path: Path) -> Path:
    """A complete run that a test may damage."""
    return write_run(tmp_path / "my-run")


def _adaptation(directory: Path) -> Path:
    from tests.report.adaptation_runs import write_adaptation  # which builds on this module

    return write_adaptation(directory)


@pytest.fixture(scope="session")
def adaptation_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete adaptation; tests must not change it."""
    return _adaptation(tmp_path_factory.mktemp("runs") / "my-adaptation")


@pytest.fixture(scope="session")
def guarded_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete guarded alignment; tests must not change it."""
    from tests.report.guarded_runs import write_guarded  # which builds on this module

    return write_guarded(tmp_path_factory.mktemp("runs") / "my-guarded-run")


@pytest.fixture
def own_adaptation(tmp_path: Path) -> Path:
    """A complete adaptation that a test may damage."""
    return _adaptation(tmp_path / "my-adaptation")
