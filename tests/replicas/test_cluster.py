"""What must hold of Ray itself: its version is told, and only its core is used."""

from __future__ import annotations

import ast
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT, Traitmill
from tests.support import fakes, lab
from traitmill.engine.errors import AccessError, ExitCode, ResourceError, UsageError
from traitmill.engine.replicas import TESTED, Cluster, Seat, cluster
from traitmill.engine.run.replicated import own_cores
from traitmill.engine.settings import Execution


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_r21_nothing_but_rays_core_is_imported() -> None:
    files = [path for name in ("engine", "cli") for path in (ROOT / name).rglob("*.py")]
    found = {name for path in files for name in imported(path) if name.split(".")[0] == "ray"}
    assert found == {"ray", "ray.exceptions.RayError", "ray.exceptions.RayTaskError"}


def test_r21_doctor_names_ray_beside_vllm_and_says_when_the_pair_is_untested(
    traitmill: Traitmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traitmill.cli import doctor

    assert version("ray") == TESTED
    assert doctor._ray() == f"{TESTED}, as tested"
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3" if name == "ray" else version(name))
    assert doctor._ray() == f"1.2.3 (replicas were tested with Ray {TESTED} alone)"


def test_without_ray_replicas_are_refused_in_a_line_before_anything_is_written(
    traitmill: Traitmill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "installed_versions", lambda names: {})
    folder, model = fakes.make_trait(tmp_path), lab.make_model(tmp_path)
    chosen = ("--experiment", "exp", "--trait", "trait", "--experiments_dir", tmp_path)
    code, said = traitmill("generate", *chosen, "--gen_model", model, "--replicas", "auto")
    assert code == ExitCode.USAGE
    assert (
        f"--replicas other than 1 needs Ray, which is not installed: pip install ray=={TESTED}"
        in (" ".join(said.split()))
    )
    assert [path.name for path in folder.iterdir()] == ["trait_definition.json"]


@pytest.mark.slow
async def test_a_cluster_that_is_not_there_is_told_in_a_line() -> None:
    with pytest.raises(AccessError, match=r"^`ray_address` auto: .*ray status"):
        await Cluster("auto").connect(1, 1.0)


async def test_a_ray_that_is_not_up_in_time_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(ResourceError, match="^Ray did not start: The current node timed out"):
        await Cluster().connect(2, 2.0)


async def test_t31_replicas_have_the_priority_of_their_run() -> None:
    """Ray's own default, 15 more, left them a fiftieth of a core beside other programs."""
    import ray

    found = Cluster()
    await found.connect(1, 1.0)
    try:
        asked = ray.remote(lambda: os.nice(0))
        assert await found.call(lambda: ray.get(asked.remote())) == os.nice(0)
    finally:
        await found.close()


def test_an_address_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="`ray_address` needs `replicas`"):
        Execution(ray_address="auto")
    assert Execution(ray_address="auto", replicas=0).replicas == 0


@pytest.mark.parametrize(
    ("cores", "of", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([2, 3, 6, 7, 9], 2, [[2, 3], [6, 7]]),
        ([0, 1], 1, [[0, 1]]),
        ([4, 5], 3, [[4], [5], [4]]),
    ],
)
def test_replicas_on_one_cpu_divide_its_cores(
    cores: list[int], of: int, shares: list[list[int]]
) -> None:
    assert [own_cores(cores, Seat(index, of)) for index in range(of)] == shares
