"""`python -m traitmill`: the command, where its name is not on the PATH."""

from __future__ import annotations

from traitmill.cli.main import main

main()
