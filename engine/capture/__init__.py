"""Response → Activation: every layer's residual stream, pooled. The face loads no torch."""

from __future__ import annotations

from .fit import check_blocks
from .process import CaptureFacts, CaptureProcess

__all__ = ["CaptureFacts", "CaptureProcess", "check_blocks"]
