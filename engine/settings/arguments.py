"""The arguments of a public function, made plain by its signature, or refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from multiprocessing import current_process
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

from ..errors import UsageError
from .given import plainly
from .run import NAMES

_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a public function take its arguments as the types that its signature names.

    What stands for them is made plain first: numpy's numbers, whatever can be listed for a list,
    a single name for a list of names. What does not is a UsageError, raised before anything is
    done. `**given` are the function's own to look at.
    """
    signature = inspect.signature(function)

    kinds = functools.cache(lambda: get_type_hints(function))  # at a call: imports are whole then

    def made_plain(given: tuple[Any, ...], named: Mapping[str, Any]) -> inspect.BoundArguments:
        _check_names(function.__name__, signature, named)
        bound = signature.bind(*given, **named)
        for name in bound.arguments.keys() & kinds().keys():
            if signature.parameters[name].kind != inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = plainly(name, bound.arguments[name], kinds()[name])
        return bound

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        bound = made_plain(given, named)
        return function(*bound.args, **bound.kwargs)

    @functools.wraps(function)
    async def awaited(*given: Any, **named: Any) -> Any:
        # As multiprocessing itself knows it, which would refuse too, and in other words.
        if getattr(current_process(), "_inheriting", False):
            raise UsageError(
                f"{function.__name__} was called while a process that it started reads the script "
                'once more; put the script\'s calls under if __name__ == "__main__":'
            )
        bound = made_plain(given, named)
        return await cast("Awaitable[Any]", function(*bound.args, **bound.kwargs))

    return cast("Callable[_P, _R]", awaited if inspect.iscoroutinefunction(function) else call)


def _check_names(function: str, signature: inspect.Signature, named: Iterable[str]) -> None:
    """Raise UsageError for a name that a function does not take, and that is no setting where it
    takes those."""
    kinds = {name: each.kind for name, each in signature.parameters.items()}
    takes = [name for name, kind in kinds.items() if kind != inspect.Parameter.VAR_KEYWORD]
    settings = NAMES if len(takes) < len(kinds) else ()
    for name in named:
        if name in takes or name in settings:
            continue
        close = get_close_matches(name, takes, 1, 0.7)
        if close:
            raise UsageError(f"{function} takes no argument `{name}`: did you mean `{close[0]}`?")
        if not settings:  # else they have their own words for what is unknown
            known = ", ".join(takes)
            raise UsageError(f"{function} takes no argument `{name}`: it takes {known}")
