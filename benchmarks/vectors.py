"""Stage 3 against a loop over layers of scikit-learn and Adam: time, memory, and whether the probes
are the same.

    python -m benchmarks.vectors              # 200 x 26 x 2304 against the loop, on the same cores
    python -m benchmarks.vectors --large      # instead: 200 to 16,000 rows x 26 x 2304, and 200 x 80 x 8192
    python -m benchmarks.vectors --many       # instead: 240 traits of 40 x 26 x 2304, files and transfer table too
    python -m benchmarks.vectors --coverage   # instead: how often intervals hold the truth, what is claimed of noise

The loop is what stage 3 usually is: per layer, the difference of means, LogisticRegression(C=1,
max_iter=1000), FastICA(10) and 100 steps of Adam on the gap. Rows are noise with a few strong
dimensions and a planted direction of each layer. Runs alternate between the two, so that a noisy
machine disturbs both; ratios are taken within a round. Results are stored after each round, shape
or row.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks.common import machine, parser, record, shown, spread, table
from traitmill.engine.outputs import Activations, Metadata
from traitmill.engine.vectors import evaluate_vectors, fit_experiment, fit_vectors
from traitmill.engine.vectors.workers import count_for


def activations(rows: int, layers: int, dim: int, seed: int = 0) -> Activations:
    """float32 `[rows, layers, dim]`, half pos: 20 questions, 5 instruction pairs."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([True, False], rows // 2)
    values = np.empty((rows, layers, dim), np.float32)
    for layer in range(layers):
        scale = np.exp(0.5 * rng.standard_normal(dim))
        scale[:3] *= 30  # a few massive dimensions, as trained models have
        direction = rng.standard_normal(dim) / np.sqrt(dim)
        values[:, layer] = rng.standard_normal((rows, dim)) * scale + np.outer(
            labels - 0.5, 6 * direction
        )
    k = np.arange(rows // 2)
    metadata = {
        "sampling": {},
        "model": "synthetic",
        "revision": None,
        "extraction_date": "",
        "sample_ids": [str(row) for row in range(rows)],
        "files_sha256": {"activations/all_layers.pt": ""},
    }
    questions, pairs = np.tile(k % 20, 2), np.tile(k % 5, 2)
    return Activations(
        "bench",
        values,
        labels,
        questions,
        pairs,
        tuple(range(layers)),
        "response_mean",
        Metadata.model_construct(**metadata),
    )


METHODS = ("mean_diff", "probe", "ica", "gradient")
Save = Callable[[Mapping[str, Any]], object]


def loop(data: Activations) -> tuple[np.ndarray, dict[str, float]]:
    """The usual stage 3; returns its probes `[layers, dim]` and the seconds of each method, of all
    layers."""
    import torch
    from sklearn.decomposition import FastICA
    from sklearn.linear_model import LogisticRegression

    probes, seconds = [], dict.fromkeys(METHODS, 0.0)
    for layer in range(data.values.shape[1]):
        x, y = data.values[:, layer], data.labels
        marks = [time.perf_counter()]
        pos, neg = torch.from_numpy(x[y]), torch.from_numpy(x[~y])
        _ = pos.mean(0) - neg.mean(0)
        marks.append(time.perf_counter())
        probes.append(LogisticRegression(C=1.0, max_iter=1000).fit(x, y).coef_[0])
        marks.append(time.perf_counter())
        FastICA(n_components=10, random_state=0).fit(x)
        marks.append(time.perf_counter())
        vector = torch.randn(x.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([vector], lr=0.01)
        for _step in range(100):
            optimizer.zero_grad()
            unit = vector / vector.norm()
            loss = -((pos @ unit).mean() - (neg @ unit).mean()) + 0.01 * vector.norm()
            loss.backward()
            optimizer.step()
        marks.append(time.perf_counter())
        for method, (start, end) in zip(METHODS, pairwise(marks), strict=True):
            seconds[method] += end - start
    return np.array(probes), seconds


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(rounds: int, save: Save) -> None:
    """Each method and all of them, ours and the loop's in turn."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = activations(200, 26, 2304)
    small = activations(20, 1, 64)  # imports and first calls are nobody's time
    fit_vectors(small), loop(small)
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"loop": [], "ours": []} for name in (*METHODS, ALL)
    }
    figures: dict[str, Any] = {"shape": data.values.shape, "seconds": seconds}
    for turn in range(rounds):
        mine, vectors = timed(lambda: fit_vectors(data))
        seconds[ALL]["ours"].append(mine)
        for method in METHODS:
            seconds[method]["ours"].append(
                timed(lambda method=method: fit_vectors(data, [method]))[0]
            )
        other, (probes, by_method) = timed(lambda: loop(data))
        seconds[ALL]["loop"].append(other)
        for method in METHODS:
            seconds[method]["loop"].append(by_method[method])
        if not turn:
            cosines = [
                _cosine(probe, vectors.vector("probe", layer)) for layer, probe in enumerate(probes)
            ]
            figures |= {
                "cosine_to_loop": min(cosines),
                "cosine_to_optimum": exact_cosine(data, vectors),
            }
        save(figures)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def exact_cosine(data: Activations, vectors: Any) -> float:
    """Least cosine of three layers' probes to scikit-learn's at a tolerance of 1e-10."""
    from sklearn.linear_model import LogisticRegression

    least = 1.0
    for layer in (0, 12, 25):
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=100_000)
        exact = model.fit(data.values[:, layer].astype(float), data.labels).coef_[0]
        least = min(least, _cosine(exact, vectors.vector("probe", layer)))
    return least


def alone(shape: tuple[int, int, int], evaluated: int, results: Queue[dict[str, Any]]) -> None:
    """Time and peak memory of fit and evaluation, in a process of its own; of `evaluated` layers
    the latter. The loop fits the first layer."""
    data = activations(*shape)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit, vectors = timed(lambda: fit_vectors(data))
    after_fit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = data
    if evaluated < shape[1]:
        part = replace(data, values=data.values[:, :evaluated], layers=data.layers[:evaluated])
        vectors = fit_vectors(part)
    assessed, _ = timed(lambda: evaluate_vectors(part, vectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "shape": shape,
        "tensor_gib": float(np.prod(shape)) * 4 / 2**30,
        "fit_s": fit,
        "fit_mib": (after_fit - held) / 2**10,
        "evaluated_layers": evaluated,
        "evaluate_s": assessed,
        "evaluate_mib": (peak - held) / 2**10,
    }
    if shape[0] <= LOOP_ROWS:
        first = replace(data, values=data.values[:, :1], layers=data.layers[:1])
        loop(activations(20, 1, 64))  # imports and first calls are nobody's time
        figures["loop_layer_s"] = timed(lambda: loop(first))[0]
    results.put(figures)


LOOP_ROWS = 4000
"""Up to which the loop fits a layer too."""
LARGE = (
    *(((rows, 26, 2304), 26) for rows in (200, 1000, 2000, LOOP_ROWS)),
    ((16_000, 26, 2304), 2),
    ((200, 80, 8192), 80),
)
"""(shape, layers to evaluate): a 2B model, and the shape of a 70B one."""


def large(shapes: Sequence[tuple[tuple[int, int, int], int]], save: Save) -> None:
    """Each (shape, layers to evaluate) once, in a process of its own."""
    rows: list[dict[str, Any]] = []
    for shape, evaluated in shapes:
        rows.append(in_a_process(alone, shape, evaluated))
        save({"rows": rows})


def slope(rows: Sequence[Mapping[str, Any]]) -> float:
    """By how much the logarithm of a layer's fit and evaluation grows with that of its rows, from
    the first to the last."""
    ends = [
        (
            row["shape"][0],
            row["fit_s"] / row["shape"][1] + row["evaluate_s"] / row["evaluated_layers"],
        )
        for row in (rows[0], rows[-1])
    ]
    (few, less), (many_, more) = ends
    return float(np.log(more / less) / np.log(many_ / few))


def many_alone(root: Path, results: Queue[dict[str, Any]]) -> None:
    """Time and peak memory of all traits of an experiment, in a process of its own with workers."""
    wall, result = timed(lambda: fit_experiment(root))
    own, workers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {
        "traits": len(result.fitted),
        "wall_s": wall,
        "cpu_s": sum(each.ru_utime + each.ru_stime for each in (own, workers)),
        "workers": count_for(len(result.fitted)),
        "peak_mib": own.ru_maxrss / 2**10,
        "worker_mib": workers.ru_maxrss / 2**10,
    }
    results.put(figures)


def many(traits: int, save: Save) -> None:
    """Fit, evaluate and write traits of 20 rows a side, 26 layers of 2,304 dimensions."""
    from tests.support import planted

    shape: dict[str, Any] = {"n_questions": 20, "n_pairs": 5, "n_layers": 26, "dim": 2304}
    with TemporaryDirectory() as folder:
        root = Path(folder) / "many"
        for number in range(traits):
            place = {"seed": number, "direction": number % 60}
            planted.write_trait(root / f"trait_{number:03d}", n_per_side=20, **shape, **place)
        save(in_a_process(many_alone, root))


def in_a_process(function: Callable[..., None], *given: Any) -> dict[str, Any]:
    """Return what a function puts into its queue, in a process that holds nothing else."""
    spawn = multiprocessing.get_context("spawn")
    results: Queue[dict[str, Any]] = spawn.Queue()
    process = spawn.Process(target=function, args=(*given, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{given}: its process ended with code {process.exitcode}")
    return results.get()


SHIFTS = ("none", "question", "side of a question", "side of an instruction")


def simulated(
    seed: int, n: int, questions: int, signal: float, shift: str, dim: int
) -> tuple[Activations, np.ndarray]:
    """A trait of `n` rows a side, 5 instruction pairs, 3 layers of `dim` dimensions, unit noise;
    and the layers' unit directions `[3, dim]` along which its sides differ.

    The sides lie `signal` apart. Each question, or each side of a question or of an instruction,
    may have a shift of its own as large as the noise; the latter two make sides that differ and
    share nothing with unseen ones.
    """
    rng = np.random.default_rng(seed)
    labels, k = np.repeat([True, False], n), np.tile(np.arange(n), 2)
    pairs, asked = k % 5, k // 5 % questions
    values = rng.standard_normal((2 * n, 3, dim))
    direction = rng.standard_normal((3, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    values += np.multiply.outer(labels - 0.5, signal * direction)
    if shift != "none":
        group = pairs if "instruction" in shift else asked
        shifts = rng.standard_normal((2, max(questions, 5), 3, dim))
        values += shifts[labels.astype(int) if "side" in shift else 0, group]
    metadata = {
        "sampling": {},
        "model": "synthetic",
        "revision": None,
        "extraction_date": "",
        "sample_ids": [str(row) for row in range(2 * n)],
        "files_sha256": {"activations/all_layers.pt": ""},
    }
    data = values.astype(np.float32)
    return Activations(
        "simulated",
        data,
        labels,
        asked,
        pairs,
        (0, 1, 2),
        "response_mean",
        Metadata.model_construct(**metadata),
    ), direction


COVERED = (
    *((50, 10, 0.0, shift, 32) for shift in SHIFTS),
    (100, 20, 0.0, "side of a question", 32),
    (20, 4, 0.0, "side of a question", 32),
    *(
        (n, questions, signal, "question", 32)
        for n, questions in ((50, 10), (100, 20))
        for signal in (1.0, 2.0, 4.0)
    ),
    # fewer rows than half the dimensions, whose sums are over rows; then many more
    *((50, 10, 0.0, shift, 512) for shift in SHIFTS),
    *((50, 10, signal, "question", 512) for signal in (2.0, 4.0)),
    *((2000, 20, 0.0, shift, 32) for shift in ("none", "side of a question")),
    *((2000, 20, signal, "question", 32) for signal in (1.0, 2.0)),
)
"""Rows a side, questions, gap of the sides, what has a shift of its own, dimensions."""


def coverage(traits: int, save: Save) -> None:
    """Stated AUROC and interval of simulated traits: is the truth inside, and how many are claimed?

    The truth is 0.5 where nothing is shared with unseen groups. Else it is what the recommended
    vector gives on rows without end: with a cosine c to the direction along which the sides lie g
    apart, and noise and shifts of unit variance each, Phi(g c / 2). With sides of instructions
    shifted, unseen questions do tell them apart, and only the figure by instruction has nothing to
    find.
    """
    rows: list[dict[str, Any]] = []
    for n, questions, signal, shift, dim in COVERED:
        found = []
        for seed in range(traits):
            data, direction = simulated(seed, n, questions, signal, shift, dim)
            vectors = fit_vectors(data, ["mean_diff", "gradient"])
            evaluation = evaluate_vectors(data, vectors)
            split = "instruction" if "instruction" in shift else "question"
            table_ = evaluation.table.filter(evaluation.table["measure"] == "selected_auroc")
            (row,) = table_.filter(table_["split"] == split).select("value", "low", "high").rows()
            best = evaluation.recommendation
            assert best is not None
            chosen = vectors.vector(best.method, best.layer)
            cosine = chosen @ direction[best.layer] / np.linalg.norm(chosen)
            found.append((*row, best.claim, best.general, norm.cdf(signal * cosine / 2)))
        value, low, high, claims, general, truth = np.array(found, float).T
        rows.append(
            {
                "rows_a_side": n,
                "questions": questions,
                "dimensions": dim,
                "gap": signal,
                "shift": shift,
                "mean_auroc": float(value.mean()),
                "true_auroc": float(truth.mean()),
                "inside": float(((low <= truth) & (truth <= high)).mean()),
                "low_above": float((low > truth).mean()),
                "claimed": float(claims.mean()),
                "general": float(general.mean()),
            }
        )
        save({"traits": traits, "rows": rows})


# --- the pages ---

ALL = "all four"


def times_less(result: Mapping[str, Any], name: str = ALL) -> list[float]:
    """How many times the loop's seconds ours are, by round: median, least, most."""
    times = result["seconds"][name]
    return spread(other / mine for other, mine in zip(times["loop"], times["ours"], strict=True))


def markdown(result: Mapping[str, Any]) -> str:
    """Against the loop, by method."""
    rows, layers, dim = result["shape"]
    rounds = len(result["seconds"][ALL]["ours"])
    lines = [
        [
            name,
            shown(spread(times["loop"]), 3),
            shown(spread(times["ours"]), 3),
            shown(times_less(result, name), 1, "x"),
        ]
        for name, times in result["seconds"].items()
    ]
    return (
        f"{len(METHODS)} methods x {layers} layers of a {rows} x {layers} x {dim} tensor; rounds "
        f"in turn: {rounds}, "
        "medians (least to most). The loop is scikit-learn's LogisticRegression and FastICA and "
        "100 steps of Adam, "
        "layer by layer. A method of ours alone pays for the layers' Gram matrices, which all four "
        "share.\n\n"
        f"{table(['', 'loop, s', 'traitmill, s', 'less time'], lines)}\n\n"
        f"Probes: least cosine {result['cosine_to_loop']:.6f} to the loop's at scikit-learn's "
        f"default tolerance, "
        f"{result['cosine_to_optimum']:.9f} to its optimum at a tolerance of 1e-10 (three layers)."
    )


def large_markdown(result: Mapping[str, Any]) -> str:
    """Large shapes."""
    header = ["tensor", "GiB", "fit, s", "loop, s", "less time", "on top, MiB"]
    header += ["layers evaluated", "evaluation, s", "on top, MiB"]
    lines = []
    for row in result["rows"]:
        looped = ["", ""]
        if "loop_layer_s" in row:
            loop_s = row["loop_layer_s"] * row["shape"][1]
            looped = [f"{loop_s:,.0f}", f"{loop_s / row['fit_s']:.0f}x"]
        line = [
            " x ".join(f"{n:,}" for n in row["shape"]),
            f"{row['tensor_gib']:.2f}",
            f"{row['fit_s']:.2f}",
            *looped,
            f"{row['fit_mib']:,.0f}",
            f"{row['evaluated_layers']} of {row['shape'][1]}",
            f"{row['evaluate_s']:.1f}",
            f"{row['evaluate_mib']:,.0f}",
        ]
        lines.append(line)
    note = (
        "One run each, in a process of its own. On top is peak resident memory beyond that before "
        "the fit. The loop's seconds are those of one layer, times the layers."
    )
    found = f"{note}\n\n{table(header, lines)}"
    tall = [row for row in result["rows"] if row["shape"][0] >= 2000]
    if len(tall) > 1:
        found += (
            f"\n\nFrom {tall[0]['shape'][0]:,} to {tall[-1]['shape'][0]:,} rows the logarithm of a "
            f"layer's fit and evaluation grows {slope(tall):.2f} times as fast as that of its rows."
        )
    return found


def many_markdown(result: Mapping[str, Any]) -> str:
    """Many traits."""
    return (
        f"{result['traits']} traits of 40 x 26 x 2,304, fitted, evaluated and written, with their "
        f"transfer table: {result['wall_s']:,.0f} s, {result['cpu_s']:,.0f} processor seconds. At "
        f"most {result['peak_mib']:,.0f} MiB were resident, and up to {result['worker_mib']:,.0f} "
        f"in each of {result['workers']} workers."
    )


def coverage_markdown(result: Mapping[str, Any]) -> str:
    """How often intervals hold the truth."""
    header = [
        "a shift of its own has",
        "rows a side",
        "questions",
        "dimensions",
        "gap of the sides",
        "mean AUROC",
        "true AUROC",
    ]
    header += ["inside", "low end above", "claimed", "for unseen instructions too"]
    lines = [
        [
            "nothing" if row["shift"] == "none" else f"each {row['shift']}",
            str(row["rows_a_side"]),
            str(row["questions"]),
            str(row["dimensions"]),
            f"{row['gap']:g}",
            f"{row['mean_auroc']:.2f}",
            f"{row['true_auroc']:.2f}",
            *(f"{row[name]:.3f}" for name in ("inside", "low_above", "claimed", "general")),
        ]
        for row in result["rows"]
    ]
    note = (
        f"{result['traits']} simulated traits a row, the best of 2 methods x 3 layers, 5 "
        f"instruction pairs. The true "
        'AUROC is that of the recommended vector on rows without end, 0.5 where there is nothing to find. "Inside" is '
        'how often the interval holds the truth, "low end above" how often it lies above it; where sides of '
        "instructions are shifted, AUROC and both are those by instruction."
    )
    return f"{note}\n\n{table(header, lines)}"


def main() -> None:
    options = parser("vectors", __doc__)
    options.add_argument("--rounds", type=int, default=3)
    instead = options.add_mutually_exclusive_group()
    instead.add_argument("--large", action="store_true")
    instead.add_argument("--many", type=int, nargs="?", const=240, help="traits to fit [240]")
    instead.add_argument(
        "--coverage", type=int, nargs="?", const=200, help="traits to simulate a row [200]"
    )
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    facts = machine()
    latest: dict[str, Any] = {}

    def save(figures: Mapping[str, Any], what: str | None = None) -> None:
        latest.update(figures)
        record(chosen.out, "vectors", facts, figures, what)

    if chosen.coverage:
        coverage(chosen.coverage, partial(save, what="coverage"))
        print(coverage_markdown(latest))
    elif chosen.large:
        large(LARGE, partial(save, what="large"))
        print(large_markdown(latest))
    elif chosen.many:
        many(chosen.many, partial(save, what="many"))
        print(many_markdown(latest))
    else:
        compare(chosen.rounds, save)
        print(markdown(latest))


if __name__ == "__main__":
    main()
