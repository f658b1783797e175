"""Templates filled in: text is escaped, and a name that is not given is an error."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any


def render(template: str, **context: Any) -> str:
    """Return a page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["options"] = options_in
    return environment.get_template(template).render(**context)


def options_in(text: str) -> str:
    """Return a sentence with its `names` of settings as options, as a command line has them."""
    return re.sub(r"`(\w+)`", r"--\1", text)


def inline_script(name: str) -> tuple[str, str]:
    """Return a script of ours, and its hash as a page's policy allows it: that one and no other."""
    script = files(__package__ or "").joinpath("templates", name).read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return script, base64.b64encode(digest).decode()
