"""A judge at an OpenAI-compatible endpoint. The loop is ours: every attempt stands in line and is metered.

The client's own retries are off: they would pass the limits by, and ask again where no quota is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .client import CallError, Client, TransientError
from .cost import Meter, Tokens, Usage, find_price, need_price
from .errors import AccessError, StoppedError, TraitmillError, UsageError
from .profile import CAP, RAISED_CAP, JudgeProfile, Message, barest, first_guess, refine
from .ratelimit import Throttle, wait_asked
from .records import Response, Verdict
from .reply import Reply
from .scoring import (
    PLAIN_REQUEST,
    Answer,
    Reading,
    escape_surrogates,
    judge_key,
    raw_text,
    read_expected,
    read_integer,
    whole_numbers,
)
from .settings import Judging, Limits
from .traits import Trait, fill

__all__ = ["EndpointJudge", "JudgeProfile"]

_ATTEMPTS, _PROBE_ATTEMPTS, _MAX_PROBES = 8, 3, 8
_LONGEST_BACKOFF = 30.0
_NUMBERS_PROBE = "Repeat this line exactly, with nothing before or after it:\n0 7 42 100"
_SCORE_PROBE = (
    "Rate from 0 to 100 how much the following text is about the sea. Answer with a single number.\n\n"
    "The ship rose on the waves, and the gulls followed it out of the harbour."
)
_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_FILTERED = {"content_filter", "content_policy_violation"}
_MESSAGE_CHARS = 300


class _RejectedError(CallError):
    """Asking the same again will not help; asking with the profile `better` may."""

    def __init__(self, message: str, raw: str, better: JudgeProfile | None) -> None:
        super().__init__(message, raw)
        self.better = better


class EndpointJudge:
    """Judges through chat completions. `judge` may be called from many tasks at once, of one event loop."""

    def __init__(
        self,
        judging: Judging,
        limits: Limits,
        *,
        profile: JudgeProfile | None = None,
        on_event: Callable[[str], None] = lambda _: None,
        deadline: float = 60.0,
        backoff: float = 0.5,
    ) -> None:
        """`profile` of an earlier run saves the probe. `on_event` gets one-line messages, such as a countdown.

        `deadline`: seconds one attempt may take. `backoff`: scale, in seconds, of the random exponential pauses
        before an attempt is repeated. Raises UsageError for a malformed URL, or a cost limit without a price.
        """
        self._judging, self._max_cost = judging, limits.max_cost
        self._client = Client(judging.model, limits.base_url, deadline)
        self._meter = Meter(need_price(judging.model) if limits.max_cost else find_price(judging.model))
        self._profile = profile or first_guess(judging.model, self._client.base_url)
        self._known = profile is not None
        self._throttle = Throttle(limits, on_event)
        self._backoff = backoff
        self._asked_short = self._cut_short = 0

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return self._meter.usage

    async def open(self) -> JudgeProfile:
        """Check key, endpoint and model; find out what the model can be asked (one or two calls for most).

        With a profile of an earlier run only the list of models is fetched, which is free. Raises AccessError (key,
        address, model), UsageError (a mode the model cannot serve) or StoppedError (no quota).
        """
        self._client.open()
        try:
            if self._known:
                reply = await self._client.list_models()
                if reply.status == 401:  # any other refusal says nothing: many endpoints serve no such list
                    raise self._failure(reply, self._profile)
            else:
                self._profile = await self._probe()
                self._known = True
        except CallError as error:
            raise AccessError(
                f"judge {self._judging.model} at {self._client.where} cannot be used ({error}): check --judge_model "
                "and --judge_base_url"
            ) from None
        return self._profile

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def judge(self, trait: Trait, response: Response) -> Verdict:
        """Judge one response. Trouble with this one alone becomes its verdict's status.

        Raises AccessError (key or model no longer accepted) or StoppedError (no quota; patience or `max_cost`
        reached); from then on every call raises the same at once, without a request.
        """
        self._throttle.check()
        prompt = fill(trait.eval_prompt, question=response.sample.question, answer=response.response)
        tally, reading, error = Meter(None), None, ""
        try:
            answer, reading = await self._decide(escape_surrogates(prompt), tally)
            raw = answer.text or answer.refusal
        except CallError as failure:
            raw, error = failure.raw, str(failure)
        self._meter.requests += 1
        return Verdict(
            trait=trait.name,
            sample_id=response.sample.id,
            judge_key=judge_key(self._judging, trait),
            status="failed" if reading is None else reading.status,
            score=None if reading is None else reading.score,
            mode=self._profile.mode,
            model=self._judging.model,
            raw=raw_text(self._client.without_key(raw)),
            attempts=tally.attempts,
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            hidden_tokens=tally.hidden_tokens,
            error=error,
        )

    # --- one verdict -----------------------------------------------------------------------------------------

    async def _decide(self, prompt: str, tally: Meter) -> tuple[Answer, Reading]:
        """Ask; once more where the answer cannot be read, and once with more room where it was cut off."""
        messages: list[Message] = [{"role": "user", "content": prompt}]
        # where a tenth of the answers needs more room, asking with less first would be paying twice
        cap = RAISED_CAP if self._cut_short * 10 > self._asked_short + 10 else CAP
        self._asked_short += cap == CAP
        asked_again = False
        while True:
            answer = await self._call(messages, cap, tally)
            if self._profile.mode == "expected":
                if (
                    answer.text and not answer.alternatives
                ):  # an endpoint that changed, which is not this answer's fault
                    raise CallError("no log-probabilities came, by which this verdict set is measured", answer.text)
                reading = read_expected(answer)
            else:
                reading = read_integer(answer)
            if reading.status == "truncated" and cap < RAISED_CAP:
                self._cut_short += 1
                cap = RAISED_CAP
            elif reading.status == "unparsable" and not asked_again:
                asked_again = True
                said = {"role": "assistant", "content": raw_text(answer.text) or "(no answer)"}
                messages = [*messages, said, {"role": "user", "content": PLAIN_REQUEST}]
            else:
                return answer, reading

    async def _call(self, messages: Sequence[Message], cap: int, tally: Meter) -> Answer:
        """One answer; transient trouble is retried after random, exponentially growing pauses."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        retrying = AsyncRetrying(
            stop=stop_after_attempt(_ATTEMPTS if self._known else _PROBE_ATTEMPTS),
            wait=wait_random_exponential(multiplier=self._backoff, max=_LONGEST_BACKOFF),
            retry=retry_if_exception_type(TransientError),
            sleep=self._throttle.pause,
            reraise=True,
        )
        return await retrying(self._attempt, messages, cap, tally)

    async def _attempt(self, messages: Sequence[Message], cap: int, tally: Meter) -> Answer:
        """Stand in line and ask once; a 429 goes back into line, however often, as long as patience lasts."""
        estimate = sum(len(message["content"]) for message in messages) / 4 + self._meter.mean_output
        limited = 0
        while True:
            async with self._throttle.slot(estimate) as ticket:
                profile = self._profile  # as it is now, not as it was when the wait began
                self._check_cost()
                tally.attempts += 1
                self._meter.attempts += 1
                reply = await self._client.complete(profile.request(messages, cap))
                self._throttle.learn(reply.headers)
                if reply.status < 400:
                    answer, tokens = _completion(reply)
                    self._throttle.answered(ticket, tokens.input + tokens.output)
                    self._meter.add(tokens)
                    tally.add(tokens)
                    return answer
                fault, wait = reply.fault(), wait_asked(reply.headers)
                if fault.codes & _FILTERED:
                    return Answer("", "content_filter", self._client.redact(fault.message))
                if reply.status == 429 and not fault.codes & _NO_QUOTA:
                    pause = min(self._backoff * 2.0**limited, _LONGEST_BACKOFF) if wait is None else wait
                    self._throttle.limited(ticket, pause)
                    limited += 1
                    continue
                if reply.status == 503 and wait:
                    self._throttle.shut(wait)
            error = self._failure(reply, profile)
            if not (isinstance(error, _RejectedError) and self._adopt(error.better, profile)):
                raise error

    def _check_cost(self) -> None:
        if self._max_cost and self._meter.would_reach(self._max_cost, self._throttle.in_flight - 1):
            raise self._stop(
                StoppedError(
                    f"--max_cost ${self._max_cost:g} is reached (${self._meter.dollars:.4f} for the answers so far): "
                    "run the same command to go on with as much again, or raise --max_cost"
                )
            )

    def _adopt(self, better: JudgeProfile | None, used: JudgeProfile) -> bool:
        """Whether to ask again with a better profile: this call's finding, or another's since the profile `used`."""
        if not self._known or better is None:
            return False
        if used is self._profile:
            if better.mode != used.mode:  # one verdict set, one measurement
                return False
            self._profile = better
        return True

    def _failure(self, reply: Reply, profile: JudgeProfile) -> Exception:
        """What a status of 400 or more means: an error that ends all judging, or one of this call alone."""
        fault, model, where = reply.fault(), self._judging.model, self._client.where
        said = self._client.redact(" ".join(fault.message.split()))[:_MESSAGE_CHARS] or "no text"
        better = refine(profile, fault.param, fault.message) if reply.status in {400, 403, 422} else None
        what = f"HTTP {reply.status}: {said}"
        match reply.status:
            case _ if fault.codes & _NO_QUOTA or reply.status == 402:
                remedy = "add credit with your provider, then run the same command; what was made so far is saved"
                return self._stop(StoppedError(f"judge {model} has no quota left: {remedy}"))
            case 401:
                problem = "refused the key: put a valid" if self._client.has_key else "asks for a key: put its"
                return self._stop(AccessError(f"{where} {problem} OPENAI_API_KEY into .env"))
            case 403 if better is None:
                return self._stop(AccessError(f"{where} refuses judge {model} to this key: {said}"))
            case 404:
                remedy = "check --judge_model and --judge_base_url"
                return self._stop(AccessError(f"{where} has no model {model} ({what}): {remedy}"))
            case status if status >= 500 or status in {408, 409, 425}:
                return TransientError(what, reply.text)
        return _RejectedError(what, reply.text, better)

    def _stop(self, error: TraitmillError) -> TraitmillError:
        self._throttle.stop(error)
        return error

    # --- before the first verdict ----------------------------------------------------------------------------

    async def _probe(self) -> JudgeProfile:
        """Ask for numbers where log-probabilities may be had, then for a score, mending the profile on the way."""
        asked, lacking = self._judging.mode, "returns no log-probabilities"
        profile = self._profile
        if asked != "integer" and profile.top_logprobs:
            profile = replace(profile, mode="expected")
        for _ in range(_MAX_PROBES):
            if asked == "expected" and profile.mode == "integer":
                raise UsageError(
                    f"--judge_mode expected cannot be had of {self._judging.model}: it {lacking}; use --judge_mode auto"
                )
            self._profile = profile
            prompt = _NUMBERS_PROBE if profile.mode == "expected" else _SCORE_PROBE
            try:
                answer = await self._call([{"role": "user", "content": prompt}], CAP, Meter(None))
            except _RejectedError as error:
                if error.better is None and profile == barest(profile):
                    raise
                profile = error.better or barest(profile)
                continue
            if profile.mode == "integer":
                plain = profile.schema and not answer.text.startswith("{") and answer.finish_reason != "length"
                return replace(profile, schema=False) if plain else profile
            if answer.alternatives and whole_numbers(answer.text, answer.tokens):
                return profile
            if answer.alternatives:
                lacking = "does not write 100 as one token"
            profile = replace(profile, mode="integer")
        raise _RejectedError("it rejects every form of request tried", "", None)


def _completion(reply: Reply) -> tuple[Answer, Tokens]:
    try:
        return reply.completion()
    except ValueError:
        raise TransientError(f"the endpoint's {reply.status} holds no chat completion", reply.text) from None
