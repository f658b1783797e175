"""Are the vectors that stand in a folder those that would be fitted now?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from ..outputs import Activations
from ..storage import TraitFolder, installed_versions
from .fit import SCHEMA_VERSION, Vectors
from .vector_files import Format, load_vector, stored_format


def read_vectors(
    folder: TraitFolder,
    activations: Activations,
    methods: Sequence[str],
    layers: Sequence[int],
    format: Format,  # noqa: A002 - the option's name
) -> Vectors | None:
    """Return the vectors that stand in a trait's folder; None where one is missing or damaged."""
    pool = activations.pool
    values = np.empty((len(methods), len(layers), activations.values.shape[2]), np.float32)
    metadata = {}
    for i, method in enumerate(methods):
        for j, layer in enumerate(layers):
            if stored_format(folder, method, layer, pool) != format:
                return None
            try:
                vector, facts = load_vector(folder, method, layer, pool)
            except UsageError:
                return None
            if vector.shape != values.shape[2:]:
                return None
            values[i, j] = vector
            metadata[method, layer] = facts
    return Vectors(activations.trait, pool, tuple(methods), tuple(layers), values, metadata)


def fingerprint(
    activations: Activations,
    vectors: Vectors,
    format: Format,  # noqa: A002 - as above
) -> str:
    """Return a sha256 of what was asked for, from which rows, by which versions, and the vectors.

    A change of a row's group, of a file of vectors or of the program makes it another.
    """
    asked = {
        "schema_version": SCHEMA_VERSION,
        "versions": installed_versions(("traitmill", "numpy", "scipy")),
        "metadata_sha256": activations.metadata.sha256,
        "pool": vectors.pool,
        "methods": vectors.methods,
        "layers": vectors.layers,
        "format": format,
        "facts": [facts for _, facts in sorted(vectors.metadata.items())],
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(vectors.values).tobytes())
    return digest.hexdigest()
