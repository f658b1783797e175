"""The kinds of NVIDIA cards that plans are made for: memory, peaks, capability."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..models import Gpu

_MIB = 1 << 20
_FREE = 0.99
"""Of an empty card, what its driver leaves. An assumption."""
_MOST = 64
_ASKED = re.compile(r"(?:(\d{1,3})\s*x\s*)?([\w.+-]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Card:
    """A kind of card, by NVIDIA's data sheet: tensor cores without sparsity, SXM where there is."""

    name: str
    words: tuple[str, ...]
    """All of them stand in the name that its driver gives it."""
    total: int
    """Bytes, as its driver reports them."""
    flops: float
    """16-bit operations a second."""
    flops32: float
    """32-bit ones."""
    bandwidth: float
    """Bytes a second of its memory."""
    capability: tuple[int, int]


def _card(
    name: str, words: str, mib: int, teraflops: tuple[float, float], gigabytes: float, cap: str
) -> Card:
    half, single = (1e12 * rate for rate in teraflops)
    major, minor = map(int, cap.split("."))
    return Card(
        name, tuple(words.split()), mib * _MIB, half, single, gigabytes * 1e9, (major, minor)
    )


CARDS = (
    _card("T4", "T4", 15360, (65, 8.1), 320, "7.5"),
    _card("L4", "L4", 23034, (121, 30.3), 300, "8.9"),
    _card("4090", "RTX 4090", 24564, (165, 82.6), 1008, "8.9"),
    _card("L40S", "L40S", 46068, (362, 91.6), 864, "8.9"),
    _card("A100-40", "A100 40GB", 40960, (312, 19.5), 1555, "8.0"),
    _card("A100-80", "A100 80GB", 81920, (312, 19.5), 2039, "8.0"),
    _card("H100", "H100", 81559, (989, 67), 3350, "9.0"),
    _card("H200", "H200", 143771, (989, 67), 4800, "9.0"),
)


def card_of(gpu: Gpu) -> Card | None:
    """Return the kind of a card of this machine, None where its peaks are not known."""
    words = set(re.split(r"[\s-]", gpu.name))
    return next((card for card in CARDS if set(card.words) <= words), None)


def parse_gpus(text: str) -> list[Gpu]:
    """Return empty cards as `8xH100` or `T4` names them. Raise UsageError."""
    asked = _ASKED.fullmatch(text.strip())
    count = int(asked[1] or 1) if asked else 0
    wanted = asked[2].lower() if asked else ""
    found = next((card for card in CARDS if card.name.lower() == wanted), None)
    if found is None or not 1 <= count <= _MOST:
        known = ", ".join(card.name for card in CARDS)
        raise UsageError(
            f"`gpus` {text[:40]!r}: write a number from 1 to {_MOST} and a card, as 8xH100; known: "
            f"{known}"
        )
    return [_gpu(found, index) for index in range(count)]


def _gpu(card: Card, index: int) -> Gpu:
    free = int(card.total * _FREE)
    name = f"NVIDIA {' '.join(card.words)}"
    return Gpu(index, card.total, free, name, f"GPU-{index}", card.capability)


def slowest(gpus: Sequence[Gpu]) -> Card | None:
    """Return the slowest kind among some cards: all wait for it. None where one is not known."""
    kinds = [card_of(gpu) for gpu in gpus]
    known = [kind for kind in kinds if kind is not None]
    if not known or len(known) < len(kinds):
        return None
    return min(known, key=lambda card: card.bandwidth)
