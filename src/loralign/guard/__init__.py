"""Holding a model's alignment while it is adapted: Fisher subspaces, penalties, drift, and repair afterwards.

Mathematics on tensors and models; nothing here knows a trainer. Only subspaces are written to files.
"""

from loralign.guard.controller import DriftController, ascent_rate
from loralign.guard.curvature import estimate_curvature
from loralign.guard.fisher import estimate_fisher
from loralign.guard.monitors import GuardMonitors, GuardWarning, MonitorThresholds
from loralign.guard.peers import PeerOptions
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyResult, PenaltyWeights
from loralign.guard.probe import ProbeDrift, ProbeSet
from loralign.guard.projection import project, total_share, update_shares
from loralign.guard.proximal import proximal_step
from loralign.guard.repair import repair
from loralign.guard.repair_report import LayerRepair, RepairReport
from loralign.guard.subspace import AlignmentSubspace, LayerSubspace, SubspaceInfo, soft_coefficients
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature

__all__ = [
    "AlignmentSubspace",
    "CurvatureFactor",
    "DriftController",
    "GuardMonitors",
    "GuardPenalty",
    "GuardWarning",
    "LayerRepair",
    "LayerSubspace",
    "MonitorThresholds",
    "PeerOptions",
    "PenaltyOptions",
    "PenaltyResult",
    "PenaltyWeights",
    "ProbeDrift",
    "ProbeSet",
    "RepairReport",
    "SubspaceInfo",
    "TaskCurvature",
    "ascent_rate",
    "estimate_curvature",
    "estimate_fisher",
    "project",
    "proximal_step",
    "repair",
    "soft_coefficients",
    "total_share",
    "update_shares",
]
