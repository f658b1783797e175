"""A trait before its first run: a new definition, and what to mend in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ..errors import AccessError, UsageError
from ..files import atomic_file
from ..judging import complete
from ..settings import RunSettings, apply, plain_arguments
from ..storage import check_name, has_run, select
from ..traits import (
    DEFINITION_FILE,
    DRAFT,
    SCHEMA_KEY,
    Finding,
    build,
    check_definition,
    json_schema,
    scaffold,
)
from . import remembered
from .folder_settings import addressed, check_judge, resolve

SCHEMA_FILE = "trait_definition.schema.json"
_ASK = """\
You help to write a trait definition: a way to measure one behaviour of a language model. The \
model \
is asked the same questions under opposite instructions, and a judge scores each answer from 0 to \
100.

The trait is called {name}. Its author says: {sentence}

Answer with one JSON object and nothing else, with these keys:
"meaning": one or two sentences that end the sentence "{name} means", and say what it is not;
"pairs": five objects {{"pos": ..., "neg": ...}}: instructions that ask for the trait and for its \
opposite, of equal length and build, five different approaches (a direct order, a role, a rule, an \
effect on the reader, an example to follow);
"questions": twenty short questions or small tasks on mixed topics, which either side can answer, \
and none of which names or asks for the trait;
"anchors": five short descriptions of an answer, for the scores 0, 25, 50, 75 and 100;
"asked": one short question about the answer that Yes or No can answer, Yes for the trait."""


class _Pair(BaseModel):
    pos: str
    neg: str


class _Draft(BaseModel):
    meaning: str
    pairs: Annotated[list[_Pair], Field(min_length=1)]
    questions: Annotated[list[str], Field(min_length=1)]
    anchors: Annotated[list[str], Field(min_length=5, max_length=5)]
    asked: str


@plain_arguments
def check_traits(
    experiment: Path | str, traits: Sequence[str] | str | None = None
) -> dict[str, list[Finding]]:
    """Return the findings on each trait's definition by name, errors first; None is all traits.

    Raise UsageError for names that are not there.
    """
    folders = select(experiment, traits)
    return {name: check_definition(name, folder.path) for name, folder in folders.items()}


@plain_arguments
async def new_trait(
    experiment: Path | str,
    trait: str,
    *,
    sentence: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
    **given: Any,
) -> Path:
    """Write a new trait's definition, and the JSON Schema beside the traits; return its path.

    Without a sentence it is a scaffold: texts that say what belongs in their place, which no run
    takes. With one, a judge's model drafts it: `given`'s (`judge_model` and `judge_base_url`), else
    the judge of the experiment's other traits; `notice` is told which. It is marked as a draft
    until its author has read it. A coroutine: await it.

    Raise UsageError where the trait has a definition already, or nothing names a model; AccessError
    where the model gives none.
    """
    apply(given)  # what is misspelt is said, a scaffold or not
    root = Path(experiment)
    check_name(root.name, "experiment")
    check_name(trait, "trait")
    if trait == "all":
        raise UsageError("trait name 'all' is refused: `traits` all means every trait")
    if sentence is not None and not sentence.strip():
        raise UsageError("the sentence to draft from is empty: say in it what the trait is")
    path = root / trait / DEFINITION_FILE
    if path.exists():
        raise UsageError(f"{path} is there already; edit it, or choose another name")
    content = scaffold(trait)
    if sentence is not None:
        settings = _drafting(root, given)
        notice(f"drafted by {settings.judge.model} at {settings.limits.base_url}")
        content = await _drafted(trait, sentence, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(root / SCHEMA_FILE, json_schema())
    _write(path, {SCHEMA_KEY: f"../{SCHEMA_FILE}", **content})
    return path


def _drafting(root: Path, given: Mapping[str, Any]) -> RunSettings:
    """Return settings with the model that drafts, and its address.

    Raise UsageError where neither the call nor a run of the experiment names a model at an
    endpoint: nothing is paid for unasked.
    """
    folders = select(root, None) if any(root.glob(f"*/{DEFINITION_FILE}")) else {}
    begun = {name: folder for name, folder in folders.items() if has_run(folder)}
    named = "judge_model" in given or begun
    settings = resolve(begun, given, remembered.JUDGE)[0] if begun else {}
    first = next(iter(settings.values()), None) or addressed(apply(given))
    if not named or first.judge.is_local:
        raise UsageError(
            "a draft needs a model at an endpoint: name it with `judge_model`, and its address "
            "with `judge_base_url` where that is not OpenAI's"
        )
    check_judge(first, given)
    return first


async def _drafted(trait: str, sentence: str, settings: RunSettings) -> dict[str, Any]:
    name = trait.replace("_", " ")
    text = await complete(
        settings.judge, settings.limits, _ASK.format(name=name, sentence=" ".join(sentence.split()))
    )
    begin, end = text.find("{"), text.rfind("}")
    try:
        draft = _Draft.model_validate_json(text[begin : end + 1])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AccessError(
            f"{settings.judge.model} gave no usable draft ({where or 'JSON'}: {first['msg']}): run "
            "the command again, or begin from the scaffold"
        ) from None
    pairs = [(pair.pos, pair.neg) for pair in draft.pairs]
    built = build(trait, pairs, draft.questions, draft.meaning, draft.anchors, draft.asked)
    return {DRAFT: True, **built}


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())
