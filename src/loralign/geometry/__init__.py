"""GA-LoRA: LoRA's tangent space, what it does to several objectives, and how to correct it."""

from loralign.geometry.distortion import (
    TradeoffDistortion,
    directional_distortion,
    step_distortion,
    tradeoff_distortion,
)
from loralign.geometry.peers import GramianWeighting
from loralign.geometry.refinement import LayerRefinement, RefinementReport, refine
from loralign.geometry.registry import WEIGHTINGS, make_weighting
from loralign.geometry.shared import SHARED_DIRECTIONS, WithoutShared, shared_directions, without_shared
from loralign.geometry.smoothing import SmoothedWeighting, clip_weights
from loralign.geometry.tangent import project_on_tangent_space, tangent_norm
from loralign.geometry.weighting import (
    GeoWeighting,
    MatchWeighting,
    NormWeighting,
    UniformWeighting,
    Weighting,
)
from loralign.geometry.window import UpdateWindow

__all__ = [
    "SHARED_DIRECTIONS",
    "WEIGHTINGS",
    "GeoWeighting",
    "GramianWeighting",
    "LayerRefinement",
    "MatchWeighting",
    "NormWeighting",
    "RefinementReport",
    "SmoothedWeighting",
    "TradeoffDistortion",
    "UniformWeighting",
    "UpdateWindow",
    "Weighting",
    "WithoutShared",
    "clip_weights",
    "directional_distortion",
    "make_weighting",
    "project_on_tangent_space",
    "refine",
    "shared_directions",
    "step_distortion",
    "tangent_norm",
    "tradeoff_distortion",
    "without_shared",
]
