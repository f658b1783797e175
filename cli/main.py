"""The `traitmill` command. Commands are imported when they are used, so that --help is instant."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from traitmill.engine.errors import ExitCode, ResourceError, UsageError
from traitmill.engine.threads import wait_briefly

from .output import is_full, safe_streams
from .render import as_error, complain
from .session import ending_signals
from .waiting import waiting

COMMANDS = {
    "new": "begin a trait definition: a scaffold, or a draft from one sentence",
    "import": "take over traits of persona_vectors, assistant-axis and others",
    "check": "find what to mend in trait definitions before a run is paid",
    "preview": "a few responses of both sides with scores, before a run is paid",
    "plan": "what a run would take of cards, time and money, from configs alone",
    "run": "generate, fit vectors and write the report, in one resumable command",
    "generate": "generate, judge and capture (stage 1)",
    "activations": "capture stored responses, or apply a new threshold (stage 2)",
    "vectors": "fit and evaluate trait vectors (stage 3)",
    "report": "write the HTML report",
    "steer": "add a trait's vector while the model answers, and measure what it does",
    "project": "place any texts along trait vectors, by turn and token",
    "export_vectors": "write vectors for llama.cpp, persona_vectors and others",
    "status": "what is planned, generated, judged, captured and kept",
    "show": "read responses with their scores, kept or not",
    "agree": "how far your marks of responses and the judge agree",
    "judge": "judge stored responses again, with another judge or prompt",
    "export": "write the CSV and tensor files again from Parquet, without a model",
    "doctor": "check this machine, a model and a judge before a run",
    "demo": "run everything once on the embedded model, without a GPU, a key or a hub",
}

_MODULES = {"import": "import_traits"}
"""Commands whose name no module can have."""
_NAMED = 10
"""Experiments that are named where one is missing."""
LEAST_ADDRESS_SPACE = 4 << 30
"""Below it PyTorch, Arrow and OpenBLAS abort, hang or fail in other ways."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported when invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = import_module(f".{module}", __package__).command
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={
        # --batch-size is --batch_size
        "token_normalize_func": lambda token: token.replace("-", "_"),
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(package_name="traitmill")
def cli() -> None:
    """Turn trait definitions into judged responses, all-layer activations and trait vectors."""
    _check_surroundings()


def _check_surroundings() -> None:
    """Refuse what libraries would choke on while they are imported, each in its own way."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not epoch.isdecimal():
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {epoch[:40]!r}; set it to whole seconds since 1970, or unset it"
        )
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= allowed < LEAST_ADDRESS_SPACE:
        raise ResourceError(
            f"a process may have only {allowed / 2**30:.1f} GiB of addresses here (ulimit -v); "
            f"the libraries need {LEAST_ADDRESS_SPACE >> 30}: raise it, or limit memory by a cgroup"
        )


def main() -> None:
    """Run the command line: errors a user can act on are one clear message and an exit code."""
    wait_briefly()  # before any command loads PyTorch
    # These end as Ctrl-C does, whatever is under way.
    for number in ending_signals():
        signal.signal(number, signal.default_int_handler)
    with safe_streams() as out:
        code = _run()
        waiting.stop()
        out.flush()
        if is_full(out):
            complain(ResourceError("the disk is full under the output; part of it is lost"))
            code = code or ExitCode.RESOURCES
    sys.exit(code)


def _run() -> int:
    try:
        return int(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except SystemExit as left:
        return int(left.code or 0)
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        _name_experiments(error)
        return ExitCode.USAGE
    except Exception as error:  # noqa: BLE001 - the last stop, for every error
        return _failed(error)


def _name_experiments(error: click.ClickException) -> None:
    """Say what --experiment can be, where it is missing."""
    if not isinstance(error, click.MissingParameter) or error.param is None:
        return
    if error.param.name == "experiment":
        given = error.ctx.params if error.ctx else {}  # what was typed is read before what was not
        folder = Path(given.get("experiments_dir") or "experiments")
        names = sorted(path.name for path in folder.glob("[!.]*/"))
        if names:
            listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            click.echo(f"There are in {folder}/: {listed}", err=True)


def _failed(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):  # of a task group: its first is the cause
        error = error.exceptions[0]
    known = as_error(error)
    if known is not None:
        complain(known)
        return known.exit_code
    traceback.print_exception(error)
    click.echo("traitmill: internal error (above); what was stored is safe", err=True)
    return ExitCode.INTERNAL
