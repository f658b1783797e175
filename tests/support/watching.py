"""A worker extension for tests: what leaves each block of vLLM's model, before and after steering."""

from __future__ import annotations

from typing import Any

import torch

from traitmill.engine.generation.steering import ASKED, SteeringExtension
from traitmill.engine.generation.stream import find_blocks

NAME = f"{__name__}.WatchingExtension"


class WatchingExtension(SteeringExtension):
    """Keeps the residual stream of each request by its own name, layer and position."""

    def watch(self, when: str, sums: bool) -> None:
        """Look at every block from now on: before vectors are loaded, or after. `sums`: the stream
        is the sum of what a block returns."""
        runner = self.model_runner
        self.__dict__.setdefault("_seen", {"before": {}, "after": {}})
        for layer, block in enumerate(
            find_blocks(runner.get_model(), runner.model_config.hf_text_config)
        ):
            block.register_forward_hook(self._looking(when, layer, sums))

    def _looking(self, when: str, layer: int, sums: bool) -> Any:
        def look(_block: Any, _inputs: Any, output: Any) -> None:
            runner = self.model_runner
            stream = output
            if isinstance(output, tuple):
                stream = output[0] + output[1] if sums and output[1] is not None else output[0]
            batch, starts = runner.input_batch, runner.query_start_loc.np
            for index in range(batch.num_reqs):
                extra = runner.requests[batch.req_ids[index]].sampling_params.extra_args or {}
                name = extra["watched"] if "watched" in extra else extra.get(ASKED, [""])[0]
                first = int(batch.num_computed_tokens_cpu[index])
                for row in range(int(starts[index]), int(starts[index + 1])):
                    place = (name, layer, first + row - int(starts[index]))
                    self._seen[when][place] = stream[row].float().clone()

        return look

    def seen(self, when: str, name: str, layer: int, n: int) -> bytes:
        """Return float32 `[n, hidden_dim]` of a request's first n positions; NaN where unseen."""
        found = self._seen[when]
        width = len(next(iter(found.values())))
        blank = torch.full((width,), torch.nan)
        rows = [found.get((name, layer, place), blank) for place in range(n)]
        return torch.stack(rows).numpy().tobytes()
