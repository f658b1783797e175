"""Several replicas of a run's models, each in an actor of Ray's: one pull queue feeds them all."""

from __future__ import annotations

from .actor import Captures, Generates, Hosted, Seat
from .capturer import ReplicatedCapturer
from .cluster import TESTED, Cluster, Needs, require_ray
from .pool import ReplicaPool

__all__ = [
    "TESTED",
    "Captures",
    "Cluster",
    "Generates",
    "Hosted",
    "Needs",
    "ReplicaPool",
    "ReplicatedCapturer",
    "Seat",
    "require_ray",
]
