"""An independent reference for capture: one row, float32, eager attention, every block called by
hand.

It shares no code with the engine: no hooks, no batches, no padding, no `output_hidden_states`.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 97
BOS = 1
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=9),
    "gemma2": lambda: Gemma2Config(
        **{**_GROUPED, "num_hidden_layers": 4},
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=9,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=20.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **{**_GROUPED, "num_hidden_layers": 4},
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "phi": lambda: PhiConfig(**_COMMON),
    "olmo": lambda: OlmoConfig(**_GROUPED),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}

BY_LENGTH = {
    "longrope": lambda: Phi3Config(
        **{**_COMMON, "max_position_embeddings": 64},
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [8.0] * 4,
            "original_max_position_embeddings": 16,
        },
    ),
    "dynamic": lambda: LlamaConfig(
        **{**_GROUPED, "max_position_embeddings": 16},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0},
    ),
}
"""Models that turn positions by the length of the longest row of a batch, from 17 tokens on."""

WHOLE = {
    "cohere2": lambda: Cohere2Config(
        **{**_GROUPED, "num_hidden_layers": 4},
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        logit_scale=1.0,
    ),
    "granite4": lambda: GraniteMoeHybridConfig(
        **{**_GROUPED, "hidden_size": 128},
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=48,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_n_groups=1,
        position_embedding_type="rope",
    ),
}
"""Models whose blocks in vLLM return the whole stream beside a part of it."""


def build(family: str, folder, *, dtype=torch.float32, scale=4.0, seed=0, sizes=None):
    """Save a tiny random model; `sizes` replace those of its config. Query and key weights are scaled up, so that attention is far from
    uniform and the outputs depend on who attends to whom."""
    torch.manual_seed(seed)
    config = (FAMILIES | BY_LENGTH | WHOLE)[family]()
    config.dtype = dtype
    for name, value in (sizes or {}).items():
        if hasattr(config, name):
            setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name:
                parameter.mul_(scale)
            if any(part in name for part in ("q_proj", "k_proj", "query_key_value")):
                parameter.mul_(2)
            if "embed" in name:
                parameter.normal_(0, 1)
            if (
                parameter.ndim == 1
            ):  # norms and biases too, else a final norm would change little but the length
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
    model.to(dtype).save_pretrained(folder)
    return str(folder)


class Oracle:
    """Residuals and log-probs of single rows of a saved model."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.eval()

    @torch.no_grad()
    def residuals(self, ids):
        """float32 [n_layers + 1, seq, dim]: embedding output, then each block's, none through the
        final norm."""
        base = self.model.base_model
        layers = base.layers
        token_ids = torch.tensor([ids])
        position_ids = torch.arange(len(ids))[None]
        state = self.model.get_input_embeddings()(token_ids)
        if self.model.config.model_type == "gemma3_text" and not hasattr(
            base.embed_tokens, "embed_scale"
        ):
            state = state * 32**0.5
        config = self.model.config
        states = [state[0]]
        for index, block in enumerate(layers):
            kind = (getattr(config, "layer_types", None) or ["full_attention"] * len(layers))[index]
            window = config.sliding_window if getattr(config, "sliding_window", None) else None
            if config.model_type == "qwen2" or (
                kind != "sliding_attention" and config.model_type != "mistral"
            ):
                window = None
            rotary = base.rotary_emb
            angles = (
                rotary(state, position_ids, kind) if config.model_type == "gemma3_text" else None
            )
            angles = angles if angles is not None else rotary(state, position_ids)
            out = block(
                state,
                attention_mask=_mask(len(ids), window),
                position_ids=position_ids,
                position_embeddings=angles,
            )
            state = out[0] if isinstance(out, tuple) else out
            states.append(state[0])
        return torch.stack(states).numpy()

    def of(self, row):
        """The pools of a response."""
        return self.pools(
            row.sample.prompt_token_ids,
            row.response_token_ids,
            row.n_pooled,
            row.thought_token_ids,
            row.thought_span,
        )

    def pools(self, prompt, response, n_pooled, thought=(), span=(0, 0)):
        """{pool: float32 [n_layers + 1, dim]}, by numpy in float64."""
        states = self.residuals([*prompt, *thought, *response]).astype(np.float64)
        n = len(prompt)
        found = {"prompt_mean": states[:, :n].mean(1), "prompt_last": states[:, n - 1]}
        if thought:
            found["thought_mean"] = states[:, n + span[0] : n + span[1]].mean(1)
        n += len(thought)
        if n_pooled:
            found["response_mean"] = states[:, n : n + n_pooled].mean(1)
            found["response_last"] = states[:, n + n_pooled - 1]
        return found

    @torch.no_grad()
    def logprobs(self, prompt, response):
        """What an engine reports: log-prob of each response token, temperature 1."""
        logits = self.model(torch.tensor([[*prompt, *response]])).logits[0].double()
        table = torch.log_softmax(logits, -1)
        return tuple(float(table[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def _mask(n, window):
    """float [1, 1, n, n]: 0 where query i may see key j: j <= i and, in a window of w, i - j < w."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    seen = (j <= i) if window is None else (j <= i) & (i - j < window)
    return torch.where(seen, 0.0, float("-inf"))[None, None]
