"""Tokens and dollars."""

import json

import pytest

from traitmill.engine.errors import UsageError
from traitmill.engine.judging.cost import Price, Tokens, Usage, find_price, load_prices, need_price


def test_dollars_bill_cached_input_at_its_own_rate():
    assert Price(2.0, 8.0, 0.5).dollars(1_000_000, 400_000, 250_000) == pytest.approx(
        0.6 * 2 + 0.4 * 0.5 + 0.25 * 8
    )


def test_the_shipped_table_is_sound():
    prices = load_prices()
    assert {"gpt-5-mini", "gpt-4.1-mini"} <= set(prices)
    assert all(0 < price.cached_input <= price.input < price.output for price in prices.values())


@pytest.mark.parametrize("name", ["gpt-5-mini", "gpt-5-mini-2025-08-07", "openai/gpt-5-mini"])
def test_a_model_is_found_by_its_name_without_date_or_provider(name):
    assert find_price(name) == load_prices()["gpt-5-mini"]
    assert find_price("gpt-5-mini-of-mine") is None


def test_an_edited_table_is_read(tmp_path):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"models": {"mine": {"input": 1, "cached_input": 1, "output": 3}}}))
    assert need_price("mine", table) == Price(1.0, 3.0, 1.0)
    with pytest.raises(UsageError, match=f"add its dollars per million tokens to {table}"):
        need_price("another", table)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"models": {"m": {"input": 1}}}', '{"models": {"m": 3}}']
)
def test_a_damaged_table_is_a_usage_error(tmp_path, text):
    table = tmp_path / "prices.json"
    table.write_text(text)
    with pytest.raises(UsageError, match="damaged"):
        load_prices(table)


def test_the_meter_counts_and_projects():
    meter = Usage(Price(1.0, 10.0, 0.1))
    assert meter.dollars == 0.0
    for _ in range(4):
        meter.requests += 1
        meter.attempts += 2
        meter.add(Tokens(input=1000, cached=500, output=100, hidden=60))
    usage = meter
    assert (usage.requests, usage.attempts, usage.input_tokens, usage.output_tokens) == (
        4,
        8,
        4000,
        400,
    )
    each = (500 * 1.0 + 500 * 0.1 + 100 * 10.0) / 1e6
    assert usage.dollars == pytest.approx(4 * each)
    assert usage.projected(96) == pytest.approx(100 * each)
    assert str(usage) == "4 judged, 8 calls, 4,000 tokens in, 400 out (240 hidden), $0.0062"


def test_an_unknown_price_is_unknown_and_not_zero():
    meter = Usage(None)
    meter.add(Tokens(input=1000))
    assert meter.dollars is None
    assert meter.projected(10) is None
    assert str(meter).endswith("price unknown")


def test_a_call_may_cost_its_prompt_and_all_the_output_allowed_whatever_others_have_cost():
    meter = Usage(Price(2.0, 10.0, 1.0))
    meter.add(Tokens(input=100, output=5))
    assert meter.most(100, 512) == pytest.approx((100 * 2.0 + 512 * 10.0) / 1e6)
    assert Usage(None).most(100, 512) == 0.0


def test_a_cost_limit_counts_what_is_in_flight():
    meter = Usage(Price(1.0, 1.0, 1.0))
    with meter.expecting(0.0004), meter.expecting(0.0004):
        assert not meter.would_exceed(0.001, 0.0002)
        assert meter.would_exceed(0.001, 0.00021)
    assert not meter.would_exceed(0.001, 0.001)
    meter.add(Tokens(input=500))
    assert not meter.would_exceed(0.001, 0.0005)
    assert meter.would_exceed(0.001, 0.0006)
    assert not Usage(None).would_exceed(0.001, 1.0)


def test_estimates_are_named_as_such():
    meter = Usage(Price(1.0, 1.0, 1.0))
    meter.add(Tokens(input=1000))
    assert "estimated" not in str(meter)
    meter.add(Tokens(input=1000), estimated=True)
    assert str(meter).endswith("(estimated for 1 answers without counts)")


def test_tokens_expected_of_a_verdict_are_not_those_of_a_short_question():
    meter = Usage(None)
    meter.add(Tokens(input=10, output=1))
    meter.opened()
    assert meter.expected_tokens(100, 512) == 612
    meter.add(Tokens(input=300, output=20))
    assert meter.expected_tokens(100, 512) == 120
