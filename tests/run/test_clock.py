"""A template that asks for the time gets the moment its run began, whatever the day."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support import fakes
from traitmill.engine.errors import AccessError
from traitmill.engine.models import ModelRef, lazy_tokenizer, load_tokenizer
from traitmill.engine.run.trait_run import TraitRun
from traitmill.engine.run.wanted import Wanted
from traitmill.engine.storage import TraitFolder
from traitmill.engine.traits import load_traits

DATED = "Today is {{ strftime_now('%d %B %Y') }}. {{ messages[0]['content'] }}"
NOVEMBER, NEXT_MAY = "1795000000", "1810000000"


def with_template(model_folder: Path, tmp_path: Path, template: str) -> ModelRef:
    """A copy of the embedded model's tokenizer with another chat template."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return ModelRef("m", str(folder), "r", {})


def opened(folder: Path, ref: ModelRef, n: int) -> TraitRun:
    """The folder as `generate` opens it, with `n` samples a side."""
    [trait] = load_traits({folder.name: folder})
    wanted = Wanted(
        trait=trait,
        folder=TraitFolder(folder),
        settings=fakes.settings(n),
        generates=True,
        judges=True,
    )
    return fakes.open_run(wanted, ref, lazy_tokenizer(ref), lambda _: None)


def test_t15_r03_another_day_changes_no_prompt_and_no_id(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = with_template(model_folder, tmp_path, DATED)
    folder = fakes.make_trait(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", NOVEMBER)
    first = opened(folder, ref, 3)
    judge = fakes.FakeJudge(first.settings.judge)

    async def finish(run: TraitRun) -> list[str]:
        generator = fakes.FakeGenerator()
        await fakes.pipeline([run], run.settings, generator=generator, judge=judge).run()
        return list(generator.calls)

    made = asyncio.run(finish(first))
    assert len(made) == 6
    monkeypatch.setenv("SOURCE_DATE_EPOCH", NEXT_MAY)
    again = opened(folder, ref, 3)
    assert again.ungenerated() == []
    extended = opened(folder, ref, 6)
    assert set(first.state.plan.ids.tolist()) < set(extended.state.plan.ids.tolist())
    new = asyncio.run(finish(extended))
    assert len(new) == 6
    assert not set(new) & set(made)
    tokenizer = load_tokenizer(ref)
    for sample in extended.samples(range(12)):
        assert "Today is 18 November 2026. " in tokenizer.decode(sample.prompt_token_ids)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "Unexpected end of template"),
        ("{{ raise_exception('only system turns') }}", "only system turns"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ nothing.at.all }}", "nothing"),
    ],
)
def test_t14_a_template_that_fails_is_refused_before_anything_is_written(
    model_folder: Path, tmp_path: Path, template: str, reason: str
) -> None:
    ref = with_template(model_folder, tmp_path, template)
    folder = fakes.make_trait(tmp_path)
    with pytest.raises(AccessError, match=f"the chat template of .* fails: .*{reason}"):
        opened(folder, ref, 3)
    assert [path.name for path in folder.iterdir()] == ["trait_definition.json"]
