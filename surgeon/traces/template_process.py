"""The process that `template_trial` starts: renders chat templates, and may be killed at it.

Run as a script, so that it imports Jinja and nothing else. The sandbox is Jinja's, with what
transformers gives a template. What is rendered is thrown away: how long it is, is the answer.
"""

import functools
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}`, transformers' mark of what the assistant writes: only its content."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        """The statements up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse a conversation."""
    raise TemplateError(message)


def tojson(value: Any, **how: Any) -> str:
    """Jinja's filter without HTML's escapes."""
    return json.dumps(value, **{"ensure_ascii": False, **how})


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """The template in its sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def length(template: str, variables: dict[str, Any]) -> int | None:
    """Characters of the rendering; 0 where the template refuses, None where memory ran out."""
    try:
        return len(compiled(template).render(**variables))
    except (MemoryError, OverflowError):
        return None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError,
            ArithmeticError, RecursionError):  # fmt: skip
        return 0


def main() -> None:
    """One line of JSON in, one out, until the input ends."""
    limit_s, memory = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin:
        # The last resort where the parent, whose job it is, is dead.
        signal.setitimer(signal.ITIMER_REAL, limit_s + 2)
        found = length(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
