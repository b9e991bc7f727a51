"""Models: what is emulated, its weights, and the reference that every distributed path must equal."""

from __future__ import annotations

from rayemu.model.checkpoint import checkpoint_spec, load_checkpoint
from rayemu.model.expert import Expert, expert_forward
from rayemu.model.model import Experts, Layer, Model
from rayemu.model.presets import PRESETS, preset
from rayemu.model.reference import (
    Replay,
    combine,
    drop_choices,
    finish,
    moe_forward,
    prepare,
    reference_forward,
    route,
    shared_forward,
)
from rayemu.model.spec import ACTIVATIONS, ModelSpec
from rayemu.model.tensor_files import CheckpointError
from rayemu.routing.gate import Gate, Routing

__all__ = [
    "ACTIVATIONS",
    "PRESETS",
    "CheckpointError",
    "Expert",
    "Experts",
    "Gate",
    "Layer",
    "Model",
    "ModelSpec",
    "Replay",
    "Routing",
    "checkpoint_spec",
    "combine",
    "drop_choices",
    "expert_forward",
    "finish",
    "load_checkpoint",
    "moe_forward",
    "prepare",
    "preset",
    "reference_forward",
    "route",
    "shared_forward",
]
