"""Steering inside vLLM's batch against transformers with a hook of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import watching
from tests.support.oracle import BOS, VOCAB, WHOLE, Oracle, build
from traitmill.engine.errors import EngineDiedError, UsageError
from traitmill.engine.generation import EngineSize, Shift, SteeredEngine, on_gpu
from traitmill.engine.generation.steering import (
    ASKED,
    Rows,
    Steering,
    SteeringExtension,
)
from traitmill.engine.generation.stream import find_blocks, stream_is_sum
from traitmill.engine.models import find_model
from traitmill.engine.records import Response, Sample
from traitmill.engine.run.watchdog import tie_children
from traitmill.engine.settings import Execution, Sampling

FAMILIES = ("llama", "gemma2", "gemma3", "qwen3", "qwen3_moe", *WHOLE)
WIDTH, LAYERS, NEW = 128, (0, 2), 12
SIZES = {"hidden_size": WIDTH, "head_dim": 32, "query_pre_attn_scalar": 32}
"""vLLM's attention on a CPU knows no smaller heads."""
SIZE = EngineSize(6, 256, 128, 64 << 20)


class WatchedEngine(SteeredEngine):
    """Tells what each request asked for, and lets tests look into the worker."""

    extension = watching.NAME
    salted = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.answers: dict[str, Any] = {}

    async def call(self, name: str, *arguments: Any) -> Any:
        [found] = await self._engine.collective_rpc(name, args=arguments)
        return found

    async def _run(
        self, prompt_token_ids: Any, parameters: Any, *, salt: str = "", **named: Any
    ) -> Any:
        if parameters.extra_args is None:
            parameters.extra_args = {"watched": f"plain{parameters.seed}"}
        return await super()._run(prompt_token_ids, parameters, salt=salt * self.salted, **named)

    async def states(self, when: str, name: str, layer: int, n: int) -> np.ndarray:
        data = await self.call("seen", when, name, layer, n)
        return np.frombuffer(data, np.float32).reshape(n, WIDTH)


async def started(folder: Path) -> WatchedEngine:
    tie_children()
    ref = find_model(str(folder))
    how = Sampling(model=ref.name, max_new_tokens=NEW, dtype="float32")
    engine = WatchedEngine(ref, how, Execution(), SIZE, on_gpu=on_gpu())
    await asyncio.to_thread(engine.start)
    return engine


def saved(family: str, folder: Path) -> Path:
    """A tiny random model with a tokenizer, as vLLM wants one: a word for each token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{token}": token for token in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)
    return Path(build(family, folder, sizes=SIZES))


def sample(ids: tuple[int, ...], seed: int) -> Sample:
    return Sample("t", f"{seed:032x}", "pos", 0, 0, seed, "i", "q", "p", ids, seed)


def vectors(seed: int = 0) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(layer, rng.normal(0, 1, WIDTH).astype(np.float32)) for layer in (*LAYERS, 0)]


def hooked(oracle: Oracle, ids: list[int], shift: Shift | None, loaded: Any) -> np.ndarray:
    """States leaving each block `[n_layers, seq, dim]`, and logits, of one row alone, steered by
    plain hooks of transformers' model."""
    model, handles = oracle.model, []
    states: list[torch.Tensor] = []
    for index, block in enumerate(model.base_model.layers):

        def hook(_b: Any, _i: Any, output: Any, index: int = index) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if shift is not None and (shift.ablates or loaded[shift.vector][0] == index):
                stream = stream.clone()
                span = slice(shift.first, len(ids) if shift.end is None else shift.end)
                v = torch.tensor(loaded[shift.vector][1])
                push = shift.coefficient * v[None, None]
                if shift.ablates:
                    unit = v / v.norm()
                    push = -shift.coefficient * torch.outer(stream[0, span] @ unit, unit)[None]
                stream[:, span] += push
            states.append(stream[0].detach())
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handles.append(block.register_forward_hook(hook))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return torch.stack(states).numpy(), torch.log_softmax(logits.double(), -1).numpy()


@dataclass
class Case:
    """One request of a crowd: its name in the worker, and what it asked and got."""

    prompt: tuple[int, ...]
    shift: Shift | None
    name: str = ""
    response: Response | None = None

    @property
    def ids(self) -> list[int]:
        """All tokens that were read: the last one sampled was not."""
        assert self.response is not None
        return [*self.prompt, *self.response.response_token_ids[:-1]]


def crowd() -> list[Case]:
    """Requests of all coefficients, layers, positions and lengths; unsteered ones among them, and
    such that a direction is taken out of."""
    rng = np.random.default_rng(5)
    cases = []
    for index in range(16):
        n = int(rng.integers(3, 40))
        prompt = (BOS, *map(int, rng.integers(3, VOCAB, n)))
        first, end = [(n + 1, None), (0, n + 1), (0, None), (2, 5)][index % 4]
        coefficient = float(rng.choice([-3.0, -0.5, 0.7, 2.0]))
        shift = Shift(index % 3, coefficient, first, end) if index % 5 else None
        if index % 7 in (1, 2):
            shift = Shift(index % 3, [0.5, 1.0][index % 2], first, end, ablates=True)
        cases.append(Case(prompt, shift))
    return cases


@dataclass
class Seen:
    oracle: Oracle
    cases: list[Case]
    before: dict[int, np.ndarray]
    after: dict[int, np.ndarray]
    """By case, `[n_layers, seq, dim]`."""
    scored: dict[int, tuple[float, ...]]
    unsteered: list[tuple[Any, Any]]
    cached: Cached | None = None
    """Of one family."""


async def look(engine: WatchedEngine, folder: Path) -> Seen:
    oracle, cases, loaded = Oracle(str(folder)), crowd(), vectors()
    n_layers, sums = len(oracle.model.base_model.layers), folder.name not in WHOLE
    await engine.call("watch", "before", sums)
    await engine.load_vectors(loaded)
    await engine.call("watch", "after", sums)
    run = engine._run

    async def noting(ids: Any, parameters: Any, **named: Any) -> Any:
        answer = await run(ids, parameters, **named)
        extra = parameters.extra_args
        engine.answers[str(list(ids))] = extra.get("watched") or extra[ASKED][0]
        return answer

    engine._run = noting  # type: ignore[method-assign]

    async def one(index: int, case: Case) -> None:
        await asyncio.sleep(0.01 * (index % 4))  # some arrive while others decode
        case.response = await engine.steered(sample(case.prompt, index), case.shift)
        case.name = engine.answers[str(list(case.prompt))]

    await asyncio.gather(*(one(index, case) for index, case in enumerate(cases)))
    before, after = {}, {}
    for index, case in enumerate(cases):
        for when, found in (("before", before), ("after", after)):
            found[index] = np.stack(
                [
                    await engine.states(when, case.name, layer, len(case.ids))
                    for layer in range(n_layers)
                ]
            )
    scored = {}
    for index, case in enumerate(cases):
        assert case.response is not None
        found_logprobs = await engine.logprobs(
            case.prompt, case.response.response_token_ids, case.shift
        )
        assert found_logprobs is not None
        scored[index] = found_logprobs
    unsteered = []
    for index, case in enumerate(cases[:4]):
        zero = await engine.steered(sample(case.prompt, index), Shift(0, 0.0, 0, None))
        plain = await engine.steered(sample(case.prompt, index), None)
        unsteered.append((zero.response_token_ids, plain.response_token_ids))
    engine._run = run  # type: ignore[method-assign]
    return Seen(oracle, cases, before, after, scored, unsteered)


async def look_at(families: Sequence[str], root: Path) -> dict[str, Seen]:
    """Two engines at a time, since a start is mostly one core's imports: started, asked and closed
    together."""
    from vllm import AsyncLLMEngine  # noqa: F401 - once, not in two threads

    found = {}
    for pair in (families[i : i + 2] for i in range(0, len(families), 2)):
        folders = [saved(family, root / family) for family in pair]
        engines = await asyncio.gather(*(started(folder) for folder in folders))
        try:
            for family, folder, engine in zip(pair, folders, engines, strict=True):
                found[family] = await look(engine, folder)
                if family == FAMILIES[0]:
                    found[family].cached = await look_at_cache(engine, folder)
        finally:
            await asyncio.gather(*(engine.close() for engine in engines))
    return found


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    return asyncio.run(look_at(FAMILIES, tmp_path_factory.mktemp("models")))


@pytest.fixture(params=FAMILIES)
def seen(request: Any, every: dict[str, Seen]) -> Seen:
    return every[request.param]


@pytest.mark.slow
def test_r22_a_block_leaves_its_state_plus_c_v_at_the_asked_positions_alone(seen: Seen) -> None:
    loaded, moved = vectors(), 0
    for index, case in enumerate(seen.cases):
        expected = np.zeros_like(seen.before[index])
        if case.shift is not None:
            layer, vector = loaded[case.shift.vector]
            end = len(case.ids) if case.shift.end is None else case.shift.end
            span = slice(case.shift.first, end)
            if case.shift.ablates:
                unit = vector / np.linalg.norm(vector)
                along = seen.before[index][:, span] @ unit
                expected[:, span] = -np.float32(case.shift.coefficient) * along[..., None] * unit
            else:
                expected[layer, span] = np.float32(case.shift.coefficient) * vector
            moved += len(expected[layer, span])
        difference = seen.after[index] - seen.before[index]
        assert np.isfinite(difference).all(), "a position that was read was not seen"
        still = expected == 0
        assert (difference[still] == 0).all(), case
        # float32: the stream is a sum of two tensors, each rounded at the size of a row's entries.
        size = np.abs(seen.before[index]).max(-1, keepdims=True) + np.abs(expected)
        assert (np.abs(difference - expected) <= 1e-6 * size).all(), case
    assert moved > 150


@pytest.mark.slow
def test_r23_states_and_logprobs_are_those_of_transformers_with_a_hook(seen: Seen) -> None:
    for index, case in enumerate(seen.cases):
        assert case.response is not None
        states, _ = hooked(seen.oracle, case.ids, case.shift, vectors())
        norms = np.linalg.norm(states, axis=-1)
        off = np.linalg.norm(seen.after[index] - states, axis=-1) / norms
        assert off.max() < 2e-4, (case, off.max())
        tokens = case.response.response_token_ids
        _, table = hooked(seen.oracle, [*case.ids, tokens[-1]], case.shift, vectors())
        n = len(case.prompt)
        expected = [table[n - 1 + place, token] for place, token in enumerate(tokens)]
        np.testing.assert_allclose(seen.scored[index], expected, atol=1e-3)
        if case.shift is not None and case.shift.end is None:
            plain, _ = hooked(seen.oracle, case.ids, None, vectors())
            moved = np.linalg.norm(plain[-1, -1] - states[-1, -1]) / norms[-1, -1]
            assert moved > 0.01, "steering changes nothing"


@pytest.mark.slow
def test_r22_a_coefficient_of_0_gives_the_unsteered_ids(seen: Seen) -> None:
    for with_zero, without in seen.unsteered:
        assert with_zero == without


# --- prefix caching ---


@dataclass
class Cached:
    """First tokens by steering, on one prompt, in turn; each with what transformers says."""

    asked: list[tuple[str, list[int], list[int]]]
    unsalted: tuple[list[int], list[int]]


SHIFTS = [
    None,
    Shift(0, 9.0),
    Shift(0, -9.0),
    Shift(1, 9.0),
    Shift(2, 9.0),
    Shift(2, -9.0, 40),
    Shift(0, 1.0, ablates=True),
    None,
]


async def look_at_cache(engine: WatchedEngine, folder: Path) -> Cached:
    """With vLLM's prefix cache on, as it is, and without sampling's chance."""
    oracle, loaded = Oracle(str(folder)), vectors()
    engine._sampling = replace(engine._sampling, temperature=0.0, max_new_tokens=2)
    rng = np.random.default_rng(1)
    prompt = (BOS, *map(int, rng.integers(3, VOCAB, 90)))  # two blocks of 32 and more

    async def first_tokens() -> list[int]:
        found = []
        for index, shift in enumerate(SHIFTS):
            response = await engine.steered(sample(prompt, index), shift)
            found.append(response.response_token_ids[0])
        return found

    def expected(loaded: Any) -> list[int]:
        return [int(hooked(oracle, [*prompt], s, loaded)[1][-1].argmax()) for s in SHIFTS]

    asked = [
        (said, await first_tokens(), expected(loaded))
        for said in ("computed", "served from the cache, each by its own steering")
    ]
    await engine.load_vectors(vectors(seed=9))
    asked.append(("other vectors of the same numbers", await first_tokens(), expected(vectors(9))))
    engine.salted = False
    prompt = (*prompt[:5], *prompt[6:], 7)
    return Cached(asked, (await first_tokens(), expected(vectors(9))))


@pytest.mark.slow
def test_cached_states_of_one_steering_never_serve_another(every: dict[str, Seen]) -> None:
    """Unsalted, the states of the first request would be taken for those of the next, of the same
    tokens; the test sees that they would."""
    cached = every[FAMILIES[0]].cached
    assert cached is not None
    for said, found, expected in cached.asked:
        assert found == expected, said
    assert len(set(cached.asked[0][2])) >= 4
    found, mixed = cached.unsalted
    assert found != mixed, "the cache is off, so this test tests nothing"


# --- what is refused ---


async def test_r22_a_position_that_was_not_moved_is_an_error() -> None:
    async def rpc(_name: str, args: Any) -> list[list[int]]:
        return [reported]

    engine = SteeredEngine(
        SimpleNamespace(name="m", context_length=128), Sampling(), Execution(), SIZE, on_gpu=False
    )
    engine._engine = SimpleNamespace(collective_rpc=rpc)
    engine._detokenizer = SimpleNamespace(text=lambda *_: "x")  # type: ignore[assignment]

    async def run(_ids: Any, _parameters: Any, *, salt: str, adapted: bool) -> Any:
        output = SimpleNamespace(token_ids=[5, 6, 7], finish_reason="length")
        return SimpleNamespace(outputs=[output], num_cached_tokens=cached)

    engine._run = run  # type: ignore[method-assign]
    asked, cached = sample((1, 2, 3, 4), 0), 0
    reported = [4, 6, 2]  # 4 prompt tokens and two of three sampled ones were read
    for shift in (Shift(0, 1.0, 4), Shift(0, 0.0, 4), Shift(0, 1.0, 4, 6)):
        assert (await engine.steered(asked, shift)).status == "ok"
    reported = [4, 7, 3]  # a step begun before the end was known
    await engine.steered(asked, Shift(0, 1.0, 4))
    for wrong in ([0, 0, 0], [4, 5, 1], [4, 6, 1], [5, 6, 1]):
        reported = wrong
        with pytest.raises(EngineDiedError, match="was to be steered at 4 to 5"):
            await engine.steered(asked, Shift(0, 1.0, 4))
    reported, cached = [2, 6, 4], 2  # what the cache held was moved when it was computed
    assert (await engine.steered(asked, Shift(0, 1.0))).status == "ok"
    reported, cached = [2, 6, 4], 0
    with pytest.raises(EngineDiedError, match="at 0 to 5"):
        await engine.steered(asked, Shift(0, 1.0))


class Block(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden, None


def stand_in(**layout: Any) -> Any:
    """A worker around a runner of some layout."""
    model = nn.Module()
    model.layers = nn.ModuleList([Block(), Block()])
    runner = SimpleNamespace(
        get_model=lambda: model,
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=2)),
        device=torch.device("cpu"),
        execute_model=lambda *_: None,
        **layout,
    )
    worker = SteeringExtension()
    worker.model_runner = runner
    return worker


def test_a_runner_of_unknown_layout_is_refused_in_words() -> None:
    refused = stand_in().load_steering([(0, np.zeros(4, np.float32).tobytes())])
    assert "keeps its requests where they are not found" in refused


async def test_a_refusal_of_a_worker_is_a_usage_error() -> None:
    async def rpc(_name: str, args: Any) -> list[str]:
        return ["", "its blocks were not found"]

    engine = SteeredEngine(SimpleNamespace(name="m"), Sampling(), Execution(), SIZE, on_gpu=False)
    engine._engine = SimpleNamespace(collective_rpc=rpc)
    with pytest.raises(UsageError, match="m cannot be steered: its blocks"):
        await engine.load_vectors([])


@pytest.mark.parametrize("answers", ["never", "with vLLM's error"])
async def test_f22_an_engine_that_dies_while_it_is_asked_ends_in_its_words(answers: str) -> None:
    """To a call that was under way as its process died, vLLM gives no answer."""
    from vllm.v1.engine.exceptions import EngineDeadError

    async def rpc(_name: str, args: Any) -> list[str]:
        if answers != "never":
            raise EngineDeadError
        await asyncio.Event().wait()
        raise AssertionError

    engine = SteeredEngine(SimpleNamespace(name="m"), Sampling(), Execution(), SIZE, on_gpu=False)
    engine._engine = SimpleNamespace(collective_rpc=rpc)
    engine._processes = [SimpleNamespace(exitcode=-9)]  # type: ignore[list-item]
    with pytest.raises(EngineDiedError, match="engine died: its process was ended by SIGKILL"):
        await asyncio.wait_for(engine.load_vectors([]), 60)


def test_blocks_are_the_list_nearest_the_top() -> None:
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.tower = nn.Module()
    model.visual.tower.layers = nn.ModuleList([Block(), Block()])
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([Block(), Block()])
    config = SimpleNamespace(num_hidden_layers=2)
    assert find_blocks(model, config) == list(model.model.layers)
    config.num_hidden_layers = 3
    assert "were not found" in str(find_blocks(model, config))


def test_the_v2_runners_layout_is_read() -> None:
    """vLLM's runner on GPUs keeps no batch: `prepare_inputs` returns it, `add_requests` is told of
    new requests. This is its layout, without its GPU."""
    batch = SimpleNamespace(
        req_ids=["b", "x", "a"],
        query_start_loc_np=np.array([0, 1, 3, 7]),
        num_computed_tokens_np=np.array([9, 0, 2]),
    )
    told: list[Any] = []
    worker = stand_in(prepare_inputs=lambda *_: batch, add_requests=told.append)
    v = np.arange(4, dtype=np.float32)
    assert worker.load_steering([(1, v.tobytes())]) == ""
    runner = worker.model_runner

    def new(req_id: str, asked: Any) -> Any:
        extra = {ASKED: asked} if asked else None
        return SimpleNamespace(req_id=req_id, sampling_params=SimpleNamespace(extra_args=extra))

    scheduled = SimpleNamespace(
        finished_req_ids=set(),
        scheduled_new_reqs=[
            new("a", ["sa", 0, 2.0, 3, 5, False]),
            new("b", ["sb", 0, -1.0, 0, 99, False]),
            new("x", None),
        ],
    )
    runner.add_requests(scheduled)
    assert told == [scheduled]
    hidden = torch.zeros(7, 4)
    found: list[torch.Tensor] = []

    def execute(*_: Any) -> None:
        runner.prepare_inputs()
        found.extend(block(hidden)[0] for block in runner.get_model().layers)

    execute()
    assert torch.equal(found[0], hidden), "the other block is left alone"
    expected = np.outer([-1, 0, 0, 0, 2, 2, 0], v)
    np.testing.assert_array_equal(found[1], expected)
    assert worker.take_steered("sa", False) == [3, 5, 2]
    assert worker.take_steered("sb", False) == [9, 10, 1]
    assert worker.take_steered("sb", False) == [0, 0, 0]


def test_trial_runs_of_vllm_are_left_alone() -> None:
    block = Block()
    steering = Steering([block], torch.device("cpu"))
    steering.load([(0, np.ones(4, np.float32))])
    hidden = torch.zeros(3, 4)
    assert torch.equal(block(hidden)[0], hidden)
    steering.begin([Rows(("a", 0, 1.0, 0, 9, False), 0, 3, 0)])
    assert torch.equal(block(hidden)[0], hidden + 1)
    steering.end()
    assert torch.equal(block(hidden)[0], hidden)


def test_positions_computed_twice_count_once() -> None:
    """A request that makes room for others is computed again from its start."""
    block = Block()
    steering = Steering([block], torch.device("cpu"))
    steering.load([(0, np.ones(4, np.float32))])
    for count, position in ((3, 0), (1, 3), (4, 0), (1, 4)):
        steering.begin([Rows(("a", 0, 1.0, 1, 9, False), 0, count, position)])
        block(torch.zeros(count, 4))
    assert steering.take("a", ablates=False) == (1, 5, 4)


def test_a_direction_is_taken_out_of_the_whole_stream_at_every_block() -> None:
    """Both halves of a fused stream; a block that did not take it out makes the request's count 0."""

    class Pair(nn.Module):
        def forward(self, hidden: Any, residual: Any) -> tuple[Any, Any]:
            return hidden, residual

    blocks = [Pair(), Pair()]
    steering = Steering(blocks, torch.device("cpu"))
    rng = np.random.default_rng(0)
    v = rng.normal(0, 1, 8).astype(np.float32)
    steering.load([(1, v)])
    hidden, residual = torch.tensor(rng.normal(0, 1, (2, 5, 8)), dtype=torch.float32)
    for share in (0.5, 1.0):
        steering.begin([Rows(("a", 0, share, 2, 9, True), 0, 5, 0)])
        for block in blocks:
            moved, same = block(hidden, residual)
            assert torch.equal(same, residual)
            before, after = hidden + residual, moved + residual
            torch.testing.assert_close(after[:2], before[:2], atol=0, rtol=0)
            along = after @ torch.tensor(v)
            torch.testing.assert_close(along[2:], (1 - share) * (before @ torch.tensor(v))[2:])
            across = (after - before) / torch.tensor(v)
            torch.testing.assert_close(across, across[:, :1].expand(-1, 8), atol=1e-4, rtol=1e-3)
    assert steering.take("a", ablates=True) == (2, 5, 3)
    steering.begin([Rows(("b", 0, 1.0, 2, 9, True), 0, 5, 0)])
    blocks[0](hidden, residual)
    assert steering.take("b", ablates=True) == (0, 0, 0)


class Summing(nn.Module):
    def forward(self, hidden: Any, residual: Any) -> tuple[Any, Any]:
        stream = hidden if residual is None else hidden + residual
        return stream * 0.5, stream


class Whole(nn.Module):
    def forward(self, hidden: Any, residual: Any) -> tuple[Any, Any]:
        residual = hidden
        return hidden + 1, residual


class Wary(Summing):
    def forward(self, hidden: Any, residual: Any) -> tuple[Any, Any]:
        assert residual is None or isinstance(residual, torch.Tensor)
        return super().forward(hidden, residual)


class Lone(nn.Module):
    def forward(self, hidden: Any, residual: Any) -> Any:
        return hidden + 1


@pytest.mark.parametrize(
    ("blocks", "found"),
    [
        ([Summing(), Summing(), Summing()], True),
        ([Wary(), Wary(), Wary()], True),
        ([Whole(), Whole(), Whole()], False),
        ([Lone(), Lone()], False),
        ([Block(), Block()], False),
        ([Summing()], "could not be told"),
        ([Summing(), Summing(), Whole(), Whole()], "could not be told"),
    ],
)
def test_what_a_block_returns_is_the_stream_or_half_of_it(blocks: Any, found: Any) -> None:
    """By what the next block does with it; the blocks are left as they were."""

    def run() -> Any:
        hidden, residual = torch.ones(2, 4), None
        for block in blocks:
            output = block(hidden) if isinstance(block, Block) else block(hidden, residual)
            hidden, residual = output if isinstance(output, tuple) else (output, None)
        return hidden

    plain = run()
    told = stream_is_sum(blocks, run)
    assert found in told if isinstance(told, str) else told is found
    assert torch.equal(run(), plain)
    assert not any("forward" in vars(block) for block in blocks)


def test_a_stream_is_not_taken_for_the_first_where_the_second_is_made_anew() -> None:
    """Between blocks the model hands on another tensor of the same values."""
    blocks = [Summing(), Summing(), Summing()]

    def run() -> None:
        hidden, residual = torch.ones(2, 4), None
        for block in blocks:
            hidden, residual = block(hidden, residual)
            residual = residual * 1.0

    assert "could not be told" in str(stream_is_sum(blocks, run))


def test_a_trial_run_that_fails_costs_ablation_alone() -> None:
    def run() -> None:
        raise RuntimeError("no dummy batch")

    assert stream_is_sum([Summing(), Summing()], run) == "a trial run of it failed (RuntimeError)"


def test_a_direction_is_taken_out_of_a_stream_that_is_no_sum() -> None:
    block = Whole()
    steering = Steering([block], torch.device("cpu"))
    steering.sums = False
    v = torch.tensor([1.0, 0, 0, 0])
    steering.load([(0, v.numpy())])
    steering.begin([Rows(("a", 0, 1.0, 0, 9, True), 0, 2, 0)])
    moved, _ = block(torch.full((2, 4), 3.0), None)
    assert torch.equal(moved, torch.tensor([[0.0, 4, 4, 4]] * 2))


async def test_no_direction_is_taken_out_where_its_place_cannot_be_told() -> None:
    async def rpc(name: str, args: Any = ()) -> list[str]:
        return ["it could not be told"] if name == "learn_stream" else [""]

    engine = SteeredEngine(SimpleNamespace(name="m"), Sampling(), Execution(), SIZE, on_gpu=False)
    engine._engine = SimpleNamespace(collective_rpc=rpc)
    await engine.load_vectors([])
    with pytest.raises(UsageError, match="out of m: it could not be told"):
        await engine.logprobs((1, 2), (3,), Shift(0, 1.0, ablates=True))


def test_bfloat16_states_are_rounded_once() -> None:
    block = Block()
    steering = Steering([block], torch.device("cpu"))
    rng = np.random.default_rng(0)
    v = rng.normal(0, 1, 64).astype(np.float32)
    steering.load([(0, v)])
    hidden = torch.tensor(rng.normal(0, 30, (5, 64)), dtype=torch.bfloat16)
    steering.begin([Rows(("a", 0, 0.3, 0, 9, False), 0, 5, 0)])
    expected = hidden.double() + float(np.float32(0.3)) * torch.tensor(v).double()
    found = block(hidden)[0]
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() <= (expected.abs().max() / 256)
    assert torch.equal(found, expected.to(torch.bfloat16)) or (
        (found != expected.to(torch.bfloat16)).float().mean() < 0.02
    )
