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


@cli.group("trigger")
def trigger() -> None:
    """Find failing steps, train detectors of them, teach a checkpoint to mend them (NeuReasoner).

    Five stages, each with a directory of its own: label, identify, detectors, reconstruct, sft.
    """


LABELS = option("--labels", metavar="DIR", help="What `surgeon trigger label` wrote.")
PARALLEL = option("--parallel", type=int, default="8", help="Requests at a time.")
PRICES = (
    option("--price-in", type=float, help="Money per million tokens in, for the estimate."),
    option("--price-out", type=float, help="Money per million tokens out."),
)
PROMPT_FILE = option("--prompt-file", metavar="FILE", help="Other wording for the endpoint.")
STRUCTURED = option(
    "--structured", default="json_schema",
    help="How an endpoint is held to JSON: json_schema, json_object or none.",
)  # fmt: skip
SAMPLING = (
    option("--temperature", type=float, default="0.6", help="0 decodes greedily."),
    option("--top-p", type=float, default="0.95", help="Share of the probability drawn from."),
    option("--max-tokens", type=int, default="16000", help="Longest response, tokens."),
)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


@trigger.command("label")
@click.argument("checkpoint", required=False)
@option("--prompts", metavar="FILE", help="Questions: JSONL, Parquet, or a datasets id.")
@OUT
@option("--judge", default="builtin", help="builtin, URL#model, or module:function.")
@option("--easy", metavar="FILE", help="Easy questions, for over-thinking.")
@option("--hard", metavar="FILE", help="Hard questions, to compare with.")
@option("--traces", metavar="FILE", help="Label these responses instead of sampling.")
@option("--spans", metavar="FILE", help="Labels made by hand, for --traces; no judge is asked.")
@option("--levels", multiple=True, default="intra,inter,instance", help="May be repeated.")
@option("--samples", type=int, default="1", help="Responses per question.")
@option("--limit", type=int, metavar="N", help="Only the first N questions.")
@options(*SAMPLING)
@STRUCTURED
@PROMPT_FILE
@PARALLEL
@options(*PRICES)
@SEED
@BATCH
@DEVICE
@DTYPE
@configurable
def label(recipe: str | None, settings: tuple[str, ...], **given: Any) -> None:
    """Sample traces, let a judge say which steps fail, decode counterparts that don't."""
    call("trigger-label", recipe, settings, given)


@trigger.command("identify")
@click.argument("checkpoint", required=False)
@LABELS
@OUT
@option("--method", default="direct", help="direct, adjoint (DePass) or softmax (on a shortlist).")
@option("--layer", type=int, help="Which layer; by default the middle one.")
@option("--k", type=float, default="0.25", help="Highest per token; below 1: that share of all.")
@option("--channels", type=int, default="32", help="Most channels per level.")
@SEED
@DEVICE
@DTYPE
@configurable
def identify(recipe: str | None, settings: tuple[str, ...], **given: Any) -> None:
    """Find the units and heads that push the model towards its failing steps."""
    call("trigger-identify", recipe, settings, given)


@trigger.command("detectors")
@click.argument("checkpoint", required=False)
@LABELS
@option("--channels", metavar="DIR", help="What `surgeon trigger identify` wrote.")
@OUT
@option("--k", type=int, default="4", help="Steps in the window of intra and inter.")
@option("--instance-steps", type=int, default="4", help="First steps that instance looks at.")
@option("--probes", type=int, default="16", help="Frequencies.")
@option("--negatives", default="all", help="all, or pairs: the counterparts only.")
@option("--criterion", default="balanced", help="For thresholds: balanced, accuracy or f1.")
@option("--cooldown", type=int, default="1", help="Steps of rest after a firing.")
@option("--cap", type=int, default="8", help="Most firings per response.")
@SEED
@DEVICE
@DTYPE
@configurable
def detectors(recipe: str | None, settings: tuple[str, ...], **given: Any) -> None:
    """Train a detector per level; writes monitor.safetensors."""
    call("trigger-detectors", recipe, settings, given)


@trigger.command("reconstruct")
@click.argument("checkpoint", required=False)
@LABELS
@OUT
@option("--source", default="builtin", help="Who writes: builtin, or URL#model.")
@option("--failures", default="both", help="own failing steps, made (up), or both.")
@option("--limit", type=int, metavar="N", help="Only the first N examples.")
@STRUCTURED
@PROMPT_FILE
@PARALLEL
@options(*PRICES)
@ANSWER
@SEED
@configurable
def reconstruct(recipe: str | None, settings: tuple[str, ...], **given: Any) -> None:
    """Write examples in which a trigger follows a failing step, and a repair the trigger."""
    call("trigger-reconstruct", recipe, settings, given)
