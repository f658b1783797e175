"""Templates filled in: text is escaped, and a name that is not given is an error."""

from __future__ import annotations

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
    return environment.get_template(template).render(**context)
