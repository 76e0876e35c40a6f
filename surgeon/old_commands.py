"""Commands that are not made from settings yet.

Options left out fall back to `--set name=value`, then to `--recipe FILE`, then to the defaults of
the function itself; so a default is written once, in a signature. Heavy imports happen inside.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from surgeon import __version__
from surgeon.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="surgeon")
def cli() -> None:
    """Model surgery and checkpoint ranking. The checkpoint is the unit of work.

    A checkpoint is a Hugging Face directory, a hub id (owner/name[@revision]), BASE+ADAPTER, a
    candidate of a family (DIR/family.json#slerp-0.45), or builtin:NAME. Every command writes one
    new directory, resumes when it is run again after a kill, and exits with status 2 and one line
    when its input can't be used.
    """


def option(*names: str, default: str = "", **kwargs: Any) -> Callable[[F], F]:
    """An option that is None when it was not given; `default` is shown, the function applies it."""
    kwargs.setdefault("default", None)
    if default:
        kwargs["help"] += f"  [default: {default}]"
    return click.option(*names, **kwargs)


def configurable(command: F) -> F:
    """Add the two options every command has."""
    for decorate in (
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
                     help="Set any parameter of the function, also those without an option."),
        click.option("--recipe", type=click.Path(dir_okay=False), metavar="FILE",
                     help="Take parameters from this command's step in a recipe."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def call(verb: str, recipe: str | None, settings: tuple[str, ...], given: dict[str, Any]) -> None:
    """Bind recipe, settings and options (the last wins) to the verb's function; run it; print."""
    from surgeon import recipes

    parameters: dict[str, Any] = {}
    if recipe:
        steps = [step for step in recipes.load(recipe) if step.verb == verb]
        if len(steps) != 1:
            raise BadInput(
                f"{recipe} has {len(steps)} steps of {verb}; --recipe needs exactly one."
            )
        parameters |= steps[0].parameters
    parameters |= dict(recipes.parse_setting(text) for text in settings)
    parameters |= {name: value for name, value in given.items() if value not in (None, ())}
    bound = recipes.bind(recipes.Step(verb, parameters))
    chosen = recipes.VERBS[verb]
    chosen.print(chosen.load()(**bound.parameters))


OUT = option("--out", metavar="DIR", help="Directory to write; nothing is written elsewhere.")
SEED = option("--seed", type=int, default="0", help="Seed of everything random.")
DEVICE = option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
DTYPE = option("--dtype", default="auto", help="auto (as on disk), float32, bfloat16 or float16.")
ANSWER = option(
    "--answer", default="auto", metavar="HOW",
    help="How an answer is read: auto, boxed, choice, number, last-line, a regex with one group, "
    "or module:function.",
)  # fmt: skip
BATCH = option("--batch", type=int, default="0", help="Responses decoded at once; 0: by memory.")
