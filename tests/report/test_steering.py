"""What the report says of steering: the claim, the table, answers side by side."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, PackageLoader

from tests.report.pages import HOSTILE
from tests.support.toy import LAYER, METHOD, Toy, make_toy
from traitmill.engine.errors import UsageError
from traitmill.engine.outputs import exported_table
from traitmill.engine.report import page as page_module
from traitmill.engine.report import steering, write_trait_report
from traitmill.engine.report.render import options_in
from traitmill.engine.steering import read_study
from traitmill.engine.storage import TraitFolder
from traitmill.engine.vectors import write_table


@pytest.fixture
async def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A study of real records."""
    monkeypatch.setattr(page_module, "exported_table", exported_table)
    made = await make_toy(tmp_path)
    steered = made.engine.steered

    async def hostile(sample: object, shift: object) -> object:
        response = await steered(sample, shift)  # type: ignore[arg-type]
        object.__setattr__(response, "response", f"{response.response} {HOSTILE}")
        return response

    made.engine.steered = hostile  # type: ignore[assignment,method-assign]
    await made.steer(methods=[METHOD], layers=[LAYER], n_examples=10)
    return made


async def test_r24_the_page_says_what_the_figures_say(toy: Toy) -> None:
    folder = TraitFolder(toy.folder)
    page = write_trait_report(folder).read_text()
    begins = page.index('id="steering"')
    assert page.index('id="recommendation"') < begins < page.index('id="layers"'), "it comes first"
    section = page[begins : page.index('id="layers"')]
    assert f"Trait scores are by {read_study(folder)[1]['judge']}." in section
    table, facts = read_study(folder)
    sentence = re.sub(r"<[^>]*>", "", section)
    assert facts["claim"]["sentence"].replace("&", "&amp;") in sentence
    for figure in facts["claim"]["why"]:
        assert f"{figure[:1].upper()}{figure[1:]}." in sentence
    for row in table.filter(measure="trait_score").to_dicts():
        assert f"{row['value']:.2f}" in section
    cells = re.findall(r'<th scope="row">([^<]*)</th>', section)
    assert cells[:2] == ["nothing", "the pos instruction"]
    assert "+0.5" in cells
    assert "-0.125" in cells
    assert "random +0.5" in cells
    assert "<script>document" not in section, "answers are text"
    assert "&lt;script&gt;document" in section
    for suffix in ("svg", "png"):
        assert (toy.folder / "plots" / f"steering.{suffix}").stat().st_size > 5000
    assert write_trait_report(folder).read_text() == page


async def test_a_study_that_has_one_sentence_alone_is_shown_with_it(toy: Toy) -> None:
    """As one of an earlier version has."""
    folder = TraitFolder(toy.folder)
    table, facts = read_study(folder)
    del facts["claim"]["why"]
    write_table(folder.steering_table, table, facts)
    assert facts["claim"]["sentence"] in write_trait_report(folder).read_text()


async def test_one_coefficient_has_its_interval_in_the_picture_and_0_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make_toy(tmp_path)
    await made.steer(methods=[METHOD], layers=[LAYER], n_examples=10, coefficients=[0.25])
    table, facts = read_study(TraitFolder(made.folder))
    drawn: list[Any] = []
    monkeypatch.setattr(steering, "as_picture", lambda figure, *_, **__: drawn.append(figure))
    _ = steering.Steered(table, facts).picture
    [row] = table.filter(measure="trait_score", kind="steered").to_dicts()
    axes = drawn[0].axes[0]
    bars = [bar for each in axes.collections for bar in each.get_paths()]
    ends = [[tuple(end) for end in bar.vertices] for bar in bars if len(bar.vertices) == 2]
    assert [(0.25, row["low"]), (0.25, row["high"])] in ends
    left, right = axes.get_xlim()
    assert left <= 0
    assert right >= 0.25


async def test_a_page_without_steering_has_no_such_section(toy: Toy) -> None:
    folder = TraitFolder(toy.folder)
    write_trait_report(folder)
    folder.steering_table.unlink()
    page = write_trait_report(folder).read_text()
    assert 'id="steering"' not in page
    assert not (toy.folder / "plots" / "steering.svg").exists()


async def test_figures_that_were_changed_are_refused(toy: Toy) -> None:
    folder = TraitFolder(toy.folder)
    data = bytearray(folder.steering_table.read_bytes())
    data[100] ^= 1
    folder.steering_table.write_bytes(bytes(data))
    with pytest.raises(UsageError, match="checksum differs"):
        write_trait_report(folder)


async def test_steering_with_vectors_of_other_activations_is_not_shown(toy: Toy) -> None:
    folder = TraitFolder(toy.folder)
    assert 'id="steering"' in write_trait_report(folder).read_text()
    table, facts = read_study(folder)
    write_table(folder.steering_table, table, {**facts, "activations_sha256": "0" * 64})
    page = write_trait_report(folder).read_text()
    assert "with vectors of earlier rows" in page
    assert 'id="picture-steering"' not in page


def test_a_sentence_on_a_page_names_options_as_a_command_does() -> None:
    assert options_in("take more (`n_random`, `x`)") == "take more (--n_random, --x)"


def test_a_figure_without_an_interval_shows_none() -> None:
    environment = Environment(loader=PackageLoader("traitmill.engine.report"), autoescape=True)
    ranged = environment.get_template("macros.html").module.ranged
    assert "inf" not in ranged({"value": 3.0, "low": -math.inf, "high": math.inf})
    assert "2.00 to 4.00" in ranged({"value": 3.0, "low": 2.0, "high": 4.0})
