"""The `traitmill` command. Commands are imported when they are used, so that --help is instant."""

from __future__ import annotations

import signal
import sys
import traceback
from importlib import import_module

import click

from traitmill.engine.errors import ExitCode, TraitmillError

from .render import complain

COMMANDS = {
    "run": "generate, fit vectors and write the report, in one resumable command",
    "generate": "generate, judge and capture (stage 1)",
    "activations": "capture stored responses, or apply a new threshold (stage 2)",
    "vectors": "fit and evaluate trait vectors (stage 3)",
    "report": "write the HTML report",
    "judge": "judge stored responses again, with another judge or prompt",
    "export": "write the CSV and tensor files again from Parquet, without a model",
    "status": "what is planned, generated, judged, captured and kept",
    "doctor": "check this machine, a model and a judge before a run",
    "demo": "run everything once on the embedded model, without a GPU, a key or a hub",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported when invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f".{cmd_name}", __package__).command
        assert isinstance(command, click.Command)  # noqa: S101 - our own modules
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={
        "token_normalize_func": lambda token: token.replace(
            "-", "_"
        ),  # --batch-size is --batch_size
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
    },
)
@click.version_option(package_name="traitmill")
def cli() -> None:
    """Turn trait definitions into judged responses, all-layer activations and trait vectors."""


def main() -> None:
    """Run the command line; errors a user can act on are one clear message and an exit code."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends as Ctrl-C does, whatever is under way
    try:
        code = cli.main(standalone_mode=False)
    except TraitmillError as error:
        complain(error)
        code = error.exit_code
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.Abort:
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception:  # noqa: BLE001 - the last stop: an internal error is shown whole and has its own exit code
        traceback.print_exc()
        click.echo("traitmill: internal error (above); what was stored is safe", err=True)
        code = ExitCode.INTERNAL
    sys.exit(int(code or 0))
