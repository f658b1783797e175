"""A LoRA adapter: what is known of one that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be told as the largest rank: the source is vllm/config/lora.py."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter found and readable."""

    name: str
    folder: str
    source: str
    """What finds it again: a folder or a hub name."""
    revision: str
    """Commit of a hub repository; fingerprint of a local folder's files."""
    config: dict[str, Any]
    """adapter_config.json as it stands."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors, by name."""

    @property
    def targets(self) -> list[str]:
        """The kinds of module it changes, as q_proj."""
        return sorted({key.rpartition(".lora_")[0].rpartition(".")[2] for key in self.shapes})

    @property
    def rank(self) -> int:
        """The largest rank of its parts."""
        patterns = self.config.get("rank_pattern") or {}
        return max(int(self.config["r"]), *map(int, patterns.values()), 0)

    @property
    def slot(self) -> int:
        """What vLLM is told as the largest rank."""
        return next(rank for rank in RANKS if rank >= self.rank)
