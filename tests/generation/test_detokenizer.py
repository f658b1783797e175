"""The text of finished ids, against vLLM's own detokenizer fed one token after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from traitmill.engine.generation.detokenizer import Detokenizer

SPECIAL = ["<s>", "</s>", "<pad>"]
CORPUS = ["Once upon a time, a fox met a crow.", "  two spaces, naïve café — 東京 😀", "a\n\nb\tc"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return made


def pieces(*ends: Any) -> Tokenizer:
    """Sentence pieces with bytes for what they lack; `ends` is what the decoder ends in."""
    words = ["▁", "▁▁", "▁a", "▁the", "a", "b", "the", "é", "東", "!", "\n", ".", ","]
    vocab = {piece: place for place, piece in enumerate([*SPECIAL, "<unk>", *BYTES, *words])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens([*SPECIAL, "<unk>"])
    made.add_tokens(["<think>", "</think>"])
    made.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    made.decoder = decoders.Sequence(parts)
    return made


def metaspace() -> Tokenizer:
    """As T5 and older Mistrals have it: the first word's space is no text."""
    made = pieces()
    made.decoder = decoders.Metaspace()
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "Llama 2": lambda: pieces(decoders.Strip(" ", 1, 0)),
    "Gemma": pieces,
    "metaspace": metaspace,
}


def wrapped(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def step_by_step(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], ended: bool) -> str:
    """What vLLM's output has as text, where its client reads along."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    request = SimpleNamespace(
        request_id="r",
        prompt_token_ids=list(prompt),
        prompt_embeds=None,
        sampling_params=SamplingParams(),
    )
    stream = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for place, token in enumerate(ids):
        stream.update([token], ended and place == len(ids) - 1)
    return stream.get_next_output_text(finished=True, delta=False)


def draws(tokenizer: Any, n: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of any tokens, special ones and bytes of no character among them."""
    rng, size = random.Random(0), len(tokenizer)
    found = []
    for _ in range(n):
        prompt = [rng.randrange(size) for _ in range(rng.randrange(1, 9))]
        if rng.random() < 0.5:
            prompt += tokenizer.encode("</s>\n <s>", add_special_tokens=False)
        text = "".join(rng.choice(CORPUS)[: rng.randrange(30)] for _ in range(3))
        ids = tokenizer.encode(text, add_special_tokens=False)
        for _ in range(rng.randrange(4)):
            ids.insert(rng.randrange(len(ids) + 1), rng.randrange(size))
        found.append((prompt, ids[: rng.randrange(1, len(ids) + 1)] or [5]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_g16_texts_are_vllms_byte_for_byte(kind: str) -> None:
    tokenizer = wrapped(kind)
    detokenizer = Detokenizer(tokenizer)
    stepped = [0]
    steps = detokenizer._step_by_step

    def counted(prompt: Sequence[int], ids: Sequence[int]) -> str:
        stepped[0] += 1
        return steps(prompt, ids)

    detokenizer._step_by_step = counted  # type: ignore[method-assign]
    cases = draws(tokenizer, 400)
    for prompt, ids in cases:
        expected = step_by_step(tokenizer, prompt, ids, ended=False)
        assert detokenizer.text(prompt, ids) == expected, (prompt, ids)
        ended = [*ids, tokenizer.eos_token_id]
        assert step_by_step(tokenizer, prompt, ended, ended=True) == expected
    assert 0 < stepped[0] < len(cases) * 0.9, "both ways are taken"


@pytest.mark.parametrize("kind", ["byte level", "Llama 2", "Gemma"])
def test_an_unfinished_character_at_the_end_is_no_text(kind: str) -> None:
    tokenizer = wrapped(kind)
    ids = tokenizer.encode("a 😀", add_special_tokens=False)
    whole, cut = (Detokenizer(tokenizer).text([5], some) for some in (ids, ids[:-1]))
    assert (whole.strip(), cut.strip()) == ("a 😀", "a")
    assert Detokenizer(tokenizer).text([5], []) == ""


def test_a_space_before_the_first_word_is_kept_where_vllm_keeps_it() -> None:
    """A decoder that strips the first space strips a text's, and a response is not its beginning."""
    tokenizer = wrapped("Llama 2")
    prompt, word = tokenizer.encode("ab", add_special_tokens=False), "▁the"
    found = Detokenizer(tokenizer).text(prompt, [tokenizer.convert_tokens_to_ids(word)])
    assert found == " the"
    assert tokenizer.decode([tokenizer.convert_tokens_to_ids(word)]) == "the"


def test_a_tokenizer_that_is_no_fast_one_is_read_as_vllm_reads_it() -> None:
    """Mistral's own, say: pieces in, a text out."""

    class Plain:
        all_special_tokens = ["t1"]
        is_fast = False

        def __len__(self) -> int:
            return 9

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def convert_ids_to_tokens(
            self, ids: Sequence[int], skip_special_tokens: bool = False
        ) -> list[str]:
            return [f"t{token}" for token in ids if not (skip_special_tokens and token == 1)]

        def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
            return " ".join(tokens)

    tokenizer, ids = Plain(), [3, 4, 5, 1, 6]
    assert step_by_step(tokenizer, [2, 3], ids, ended=False) == " t3 t4 t5 t6"
    assert Detokenizer(tokenizer).text([2, 3], ids) == " t3 t4 t5 t6"


def test_the_embedded_models_texts_are_vllms(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    detokenizer = Detokenizer(tokenizer)
    for prompt, ids in draws(tokenizer, 100):
        expected = step_by_step(tokenizer, prompt, ids, ended=False)
        assert detokenizer.text(prompt, ids) == expected


@pytest.mark.slow
def test_g16_vllms_front_end_takes_rendered_prompts_and_gives_the_same_ids(
    model_folder: Path,
) -> None:
    """Its own input and output processors, between which an engine would be: asked with and
    without text."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor

    from traitmill.engine.generation import EngineSize, VllmEngine
    from traitmill.engine.models import find_model
    from traitmill.engine.settings import Execution, Sampling

    ref, size = find_model(str(model_folder)), EngineSize(4, 256, 256, 1 << 26)
    engine = VllmEngine(ref, Sampling(model=ref.name), Execution(), size, on_gpu=False)
    config = engine._arguments().create_engine_config(UsageContext.ENGINE_CONTEXT)
    taken = InputProcessor(config)
    tokenizer = taken.get_tokenizer()
    given = OutputProcessor(tokenizer, log_stats=False)
    prompt = tokenizer("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n").input_ids
    ids = [*tokenizer("The sea — a naïve café 😀").input_ids, tokenizer.eos_token_id]
    texts = []
    for detokenize in (True, False):
        asked = SamplingParams(max_tokens=40, seed=1, detokenize=detokenize, skip_clone=True)
        asked.output_kind = RequestOutputKind.FINAL_ONLY
        rendered = tokens_input(list(prompt), cache_salt=None)
        request = taken.process_inputs("r", rendered, asked, supported_tasks=("generate",))
        taken.assign_request_id(request)
        assert request.prompt_token_ids == prompt
        assert request.sampling_params.all_stop_token_ids == {tokenizer.eos_token_id}
        given.add_request(request, None, None, 0, None)
        for token in ids:
            reason = FinishReason.STOP if token == ids[-1] else None
            step = EngineCoreOutput(request.request_id, [token], finish_reason=reason)
            done = given.process_outputs([step])
        output = done.request_outputs[0].outputs[0]
        assert (list(output.token_ids), output.finish_reason) == (ids, "stop")
        texts.append(output.text)
    assert texts == ["The sea — a naïve café 😀", ""]
    assert Detokenizer(tokenizer).text(prompt, ids[:-1]) == texts[0]
