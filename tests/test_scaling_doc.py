"""docs/scaling.md: its files parse, its scripts are shell, its Ray commands and options exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from tests.test_docs import parse

PAGE = (Path(__file__).resolve().parents[1] / "docs/scaling.md").read_text()
DOCUMENTS: list[dict[str, Any]] = [
    yaml.safe_load(text)
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]
JOB, TASK = DOCUMENTS
SCRIPTS = [
    *re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL),
    TASK["setup"],
    TASK["run"],
]


def test_the_files_are_what_their_readers_want() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    cluster = JOB["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert all(
                isinstance(value, str) for value in container["resources"]["limits"].values()
            )
    assert all(isinstance(v, str) for group in groups for v in group["rayStartParams"].values())
    assert {"num_nodes", "resources", "setup", "run"} <= TASK.keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def lines(program: str) -> list[list[str]]:
    """Return the words after each use of a program in the scripts."""
    joined = [line for text in SCRIPTS for line in re.sub(r"\\\n", " ", text).splitlines()]
    joined.append(JOB["spec"]["entrypoint"])
    uses = [re.search(rf"(?:^|[\s/]){program} (.*)", line.partition("#")[0]) for line in joined]
    return [shlex.split(use[1]) for use in uses if use and "SBATCH" not in use.string]


def test_rays_commands_and_options_exist() -> None:
    found = lines("ray")
    assert len(found) == 2
    for name, *words in found:
        command = ray_cli.get_command(click.Context(ray_cli), name)
        start = ray_cli.get_command(click.Context(ray_cli), "start")
        assert command is not None
        assert start is not None
        known = {option for each in (command, start) for p in each.params for option in p.opts}
        assert {word for word in words[: words.index("--")] if word.startswith("--")} <= known
    for name in re.findall(r"`ray ([a-z-]+)", PAGE):
        assert ray_cli.get_command(click.Context(ray_cli), name) is not None, name


def test_every_traitmill_command_parses() -> None:
    found = lines("traitmill")
    assert len(found) == 8
    for words in found:
        parse(words, whole=True)
