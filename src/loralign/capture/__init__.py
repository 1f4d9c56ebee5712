"""Measuring per-objective gradients of LoRA layers during one ordinary backward pass."""

from loralign.capture.collector import GradientCapture
from loralign.capture.reweighting import GradientReweighting
from loralign.capture.statistics import GradientStatistics

__all__ = ["GradientCapture", "GradientReweighting", "GradientStatistics"]
