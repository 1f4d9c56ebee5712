"""Settings of the geometry correction, in TRL's manner."""

from __future__ import annotations

from dataclasses import dataclass

from loralign.data.sampler import SAMPLING_MODES
from loralign.errors import ConfigError
from loralign.geometry import SmoothedWeighting, make_weighting
from loralign.geometry.refinement import MODES, MOMENTS, SCALES
from loralign.training.options import option

DIRECTIONS = ("policy_reference", "reference_policy")


@dataclass
class GeometryConfig:
    """What to measure, how to weight the objectives and when to refine the subspace.

    Every field is a flag of ``loralign align`` and a key of its recipes. Invalid values raise
    :class:`~loralign.errors.ConfigError` when the configuration is made.
    """

    weighting: str = option(
        "geo",
        "How objectives are weighted: uniform (standard LoRA), norm (GA-LoRA-Norm), geo (GA-LoRA-Geo), geo-layer (Geo "
        "with weights per layer), match, or a TorchJD peer: upgrad, mgda, cagrad, pcgrad, aligned-mtl, imtl-g, "
        "dualproj.",
    )
    weighting_space: str = option("euclidean", "Gramian that a TorchJD peer sees: euclidean, accessible or full.")
    weight_decay_past: float = option(0.9, "Moving average of the Gramians: weight of the past, 0 to turn it off.")
    weight_decay_past_layer: float = option(0.97, "The same for weights per layer, whose statistics are noisier.")
    weight_min: float = option(0.25, "Smallest weight of an objective, relative to its target weight.")
    weight_max: float = option(4.0, "Largest weight of an objective, relative to its target weight.")
    weight_max_change: float = option(1.5, "Largest factor by which a weight may change between two measurements.")
    measure_every: int = option(10, "Measure the geometry every so many optimiser steps; 0 turns measuring off.")
    sketch_size: int = option(32, "Columns of the Gaussian sketch of what LoRA cannot reach.")
    exact_gradients: bool = option(False, "Keep full gradients per layer instead of sketches: a slow reference.")
    refine_at_start: bool = option(False, "Initialise A from gradients of the first batches, function unchanged.")
    refine_start_batches: int = option(2, "Optimiser steps' worth of batches measured for refine_at_start.")
    refine_every: int = option(0, "Refine the subspace every so many optimiser steps; 0 turns it off.")
    refine_mode: str = option(
        "balanced",
        "Where new directions come from: condition (none, balance the factors only), accumulated (realised updates), "
        "gradient (sketch of the mixture), balanced (each objective at unit size).",
    )
    refine_tolerance: float = option(1e-3, "Share of a layer's squared update norm that may be dropped to free rows.")
    refine_emphasis: float = option(1.0, "Weight of the window's updates against the whole update (accumulated).")
    refine_scale: str = option("balanced", "balanced: share the spectrum between A and B; rows: keep A's row norm.")
    refine_moments: str = option("transform", "Adam's moments at a refinement: transform or reset.")
    preservation_weight: float = option(
        0.0, "Target weight of reference preservation as one more objective: KL to the reference on prompts; 0 is off."
    )
    preservation_direction: str = option(
        "policy_reference", "policy_reference: KL(policy || reference); reference_policy: KL(reference || policy)."
    )
    preservation_prompts: str = option(
        "preferences", "Texts that are to stay as they are: a file of prompts, texts or messages, or 'preferences'."
    )
    preservation_batch_size: int = option(2, "Preservation texts per device and backward pass.")
    sampling: str = option(
        "balanced", "balanced: equal counts of the objectives in a step; proportional: as in the data."
    )
    loss_reduction: str = option(
        "sample", "What the loss is a mean over: sample (DPO) or token (SFT); read by the normalised statistics."
    )

    def __post_init__(self) -> None:
        for name, known in (
            ("refine_mode", MODES),
            ("refine_scale", SCALES),
            ("refine_moments", MOMENTS),
            ("preservation_direction", DIRECTIONS),
            ("sampling", SAMPLING_MODES),
            ("loss_reduction", ("sample", "token")),
            ("weighting_space", ("euclidean", "accessible", "full")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{getattr(self, name)!r} is unknown", place=name, fix=f"use one of {', '.join(known)}"
                )
        for name, least in (
            ("measure_every", 0),
            ("refine_every", 0),
            ("sketch_size", 1),
            ("refine_start_batches", 1),
            ("preservation_batch_size", 1),
            ("preservation_weight", 0),
            ("refine_emphasis", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)} is too small", place=name, fix=f"use at least {least}")
        if not 0 <= self.refine_tolerance < 1:
            raise ConfigError(f"{self.refine_tolerance} must lie in [0, 1)", place="refine_tolerance")
        self.make_smoothing()

    def make_smoothing(self) -> SmoothedWeighting:
        """The weighting of this configuration inside its smoother.

        Raises:
            ConfigError: an unknown weighting or impossible bounds.
        """
        return SmoothedWeighting(
            make_weighting(self.weighting, space=self.weighting_space),
            decay=self.weight_decay_past,
            layer_decay=self.weight_decay_past_layer,
            bounds=(self.weight_min, self.weight_max),
            max_change=self.weight_max_change,
        )
