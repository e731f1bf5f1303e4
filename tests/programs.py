"""What a program does, read from its jaxpr."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def equations(function: Any, *given: Any) -> Iterator[Any]:
    """Of a function, with those of the functions and loops in it, the body of a loop once."""
    waiting = [jax.make_jaxpr(function)(*given).jaxpr]
    while waiting:
        for eqn in waiting.pop().eqns:
            yield eqn
            waiting.extend(jaxprs_in_params(eqn.params))


def products(function: Any, *given: Any) -> list[Any]:
    """The matrix products."""
    return [eqn for eqn in equations(function, *given) if eqn.primitive.name == "dot_general"]
