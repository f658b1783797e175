"""Stage 3 against a loop over layers of scikit-learn and Adam: time, memory, and whether the probes are the same.

    python -m benchmarks.vectors              # 200 x 26 x 2304 against the loop, on the same cores
    python -m benchmarks.vectors --large      # also 200 x 80 x 8192 and 2,000 x 26 x 2304, ours alone
    python -m benchmarks.vectors --coverage   # instead: do intervals hold the truth, and what is claimed of noise?

The loop is what stage 3 usually is: per layer, the difference of means, LogisticRegression(C=1, max_iter=1000),
FastICA(10) and 100 steps of Adam on the gap. Rows are noise with a few strong dimensions and a planted direction of
each layer. Runs alternate between the two, so that a noisy machine disturbs both; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np

from engine.activations import Activations
from engine.evaluation import evaluate_vectors
from engine.vectors import fit_vectors


def activations(rows: int, layers: int, dim: int, seed: int = 0) -> Activations:
    """float32 `[rows, layers, dim]`, half pos: 20 questions, 5 instruction pairs."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([True, False], rows // 2)
    values = np.empty((rows, layers, dim), np.float32)
    for layer in range(layers):
        scale = np.exp(0.5 * rng.standard_normal(dim))
        scale[:3] *= 30  # a few massive dimensions, as trained models have
        direction = rng.standard_normal(dim) / np.sqrt(dim)
        values[:, layer] = rng.standard_normal((rows, dim)) * scale + np.outer(labels - 0.5, 6 * direction)
    k = np.arange(rows // 2)
    metadata = {
        "model": "synthetic",
        "extraction_date": "",
        "sample_ids": [str(row) for row in range(rows)],
        "files_sha256": {"activations/all_layers.pt": ""},
    }
    questions, pairs = np.tile(k % 20, 2), np.tile(k % 5, 2)
    return Activations("bench", values, labels, questions, pairs, tuple(range(layers)), "response_mean", metadata)


def loop(data: Activations) -> np.ndarray:
    """The usual stage 3; returns its probes `[layers, dim]`."""
    import torch
    from sklearn.decomposition import FastICA
    from sklearn.linear_model import LogisticRegression

    probes = []
    for layer in range(data.values.shape[1]):
        x, y = data.values[:, layer], data.labels
        pos, neg = torch.from_numpy(x[y]), torch.from_numpy(x[~y])
        _ = pos.mean(0) - neg.mean(0)
        probes.append(LogisticRegression(C=1.0, max_iter=1000).fit(x, y).coef_[0])
        FastICA(n_components=10, random_state=0).fit(x)
        vector = torch.randn(x.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([vector], lr=0.01)
        for _step in range(100):
            optimizer.zero_grad()
            unit = vector / vector.norm()
            loss = -((pos @ unit).mean() - (neg @ unit).mean()) + 0.01 * vector.norm()
            loss.backward()
            optimizer.step()
    return np.array(probes)


def timed(function: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(rounds: int) -> None:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = activations(200, 26, 2304)
    small = activations(20, 1, 64)  # imports and first calls are nobody's time
    fit_vectors(small), loop(small)
    ours, theirs = [], []
    for _ in range(rounds):
        mine, vectors = timed(lambda: fit_vectors(data))
        other, probes = timed(lambda: loop(data))
        ours.append(mine)
        theirs.append(other)
    assert hasattr(vectors, "vector")
    cosines = [
        float(p @ vectors.vector("probe", i) / np.linalg.norm(p) / np.linalg.norm(vectors.vector("probe", i)))
        for i, p in enumerate(np.asarray(probes))
    ]
    mine, other = statistics.median(ours), statistics.median(theirs)
    print("4 methods x 26 layers, 200 x 26 x 2304")
    print(f"  loop of scikit-learn and Adam  {other:8.2f} s  (of {', '.join(f'{t:.2f}' for t in theirs)})")
    print(f"  traitmill                      {mine:8.2f} s  (of {', '.join(f'{t:.2f}' for t in ours)})")
    print(f"  ratio                          {other / mine:8.1f} x")
    print(f"  probes, least cosine to the loop's (default tolerance)  {min(cosines):.6f}")
    print(f"  probes, least cosine to scikit-learn at tol 1e-10       {exact_cosine(data, vectors):.9f}  (3 layers)")


def exact_cosine(data: Activations, vectors: object) -> float:
    from sklearn.linear_model import LogisticRegression

    least = 1.0
    for layer in (0, 12, 25):
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=100_000)
        exact = model.fit(data.values[:, layer].astype(float), data.labels).coef_[0]
        ours = vectors.vector("probe", layer)
        least = min(least, float(exact @ ours / np.linalg.norm(exact) / np.linalg.norm(ours)))
    return least


def alone(rows: int, layers: int, dim: int) -> None:
    """Time and peak memory of fit and evaluation, in a process of its own."""
    data = activations(rows, layers, dim)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit, vectors = timed(lambda: fit_vectors(data))
    after_fit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assessed, _ = timed(lambda: evaluate_vectors(data, vectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{rows:5d} x {layers:2d} x {dim:4d}  fit {fit:7.2f} s  evaluate {assessed:7.2f} s  tensor "
        f"{data.values.nbytes / 2**30:5.2f} GiB  on top of it: fit {(after_fit - held) / 2**10:5.0f} MiB, "
        f"evaluation {(peak - held) / 2**10:5.0f} MiB",
        flush=True,
    )


SHIFTS = ("none", "question", "side of a question", "side of an instruction")


def simulated(seed: int, n: int, questions: int, signal: float, shift: str) -> Activations:
    """A trait of `n` rows a side, 5 instruction pairs, 3 layers of 32 dimensions, unit noise.

    The sides lie `signal` apart. Each question, or each side of a question or of an instruction, may have a shift of
    its own as large as the noise; the latter two make sides that differ and share nothing with unseen ones.
    """
    rng = np.random.default_rng(seed)
    labels, k = np.repeat([True, False], n), np.tile(np.arange(n), 2)
    pairs, asked = k % 5, k // 5 % questions
    values = rng.standard_normal((2 * n, 3, 32))
    direction = rng.standard_normal((3, 32))
    values += np.multiply.outer(labels - 0.5, signal * direction / np.linalg.norm(direction, axis=1, keepdims=True))
    if shift != "none":
        group = pairs if "instruction" in shift else asked
        shifts = rng.standard_normal((2, max(questions, 5), 3, 32))
        values += shifts[labels.astype(int) if "side" in shift else 0, group]
    metadata = {
        "model": "synthetic",
        "extraction_date": "",
        "sample_ids": [str(row) for row in range(2 * n)],
        "files_sha256": {"activations/all_layers.pt": ""},
    }
    data = values.astype(np.float32)
    return Activations("simulated", data, labels, asked, pairs, (0, 1, 2), "response_mean", metadata)


def coverage(traits: int) -> None:
    """Stated AUROC and interval of simulated traits: is the truth inside, and how many are claimed?

    The truth is 0.5 where nothing is shared with unseen groups, else the mean of what is stated. With sides of
    instructions shifted, unseen questions do tell them apart, and only the figure by instruction has nothing to find.
    """
    print(f"{traits} traits a row, 2 methods x 3 layers, 5 instruction pairs")
    print("rows questions signal own shift of each        mean  truth inside  low end above it  claimed  generally")
    for n, questions, signal, shift in (
        *((50, 10, 0.0, shift) for shift in SHIFTS),
        (100, 20, 0.0, "side of a question"),
        (20, 4, 0.0, "side of a question"),
        *((n, questions, signal, "question") for n, questions in ((50, 10), (100, 20)) for signal in (1.0, 2.0, 4.0)),
    ):
        found = []
        for seed in range(traits):
            data = simulated(seed, n, questions, signal, shift)
            evaluation = evaluate_vectors(data, fit_vectors(data, ["mean_diff", "gradient"]))
            split = "instruction" if "instruction" in shift else "question"
            table = evaluation.table.filter(evaluation.table["measure"] == "selected_auroc")
            (row,) = table.filter(table["split"] == split).select("value", "low", "high").rows()
            best = evaluation.recommendation
            assert best is not None
            found.append((*row, best.claim, best.general))
        value, low, high, claims, general = np.array(found, float).T
        truth = 0.5 if signal == 0 else value.mean()
        inside = ((low <= truth) & (truth <= high)).mean()
        print(
            f"{n:4d} {questions:9d} {signal:6.1f} {shift:24s} {value.mean():8.2f} {inside:13.3f} "
            f"{(low > truth).mean():17.3f} {claims.mean():8.3f} {general.mean():10.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--coverage", type=int, nargs="?", const=200, help="traits to simulate a row [200]")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    if arguments.coverage:
        coverage(arguments.coverage)
        return
    compare(arguments.rounds)
    shapes = [(200, 26, 2304)] + ([(200, 80, 8192), (2000, 26, 2304)] if arguments.large else [])
    for shape in shapes:
        process = multiprocessing.get_context("spawn").Process(target=alone, args=shape)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
