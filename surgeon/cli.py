"""The command line: each command is made from its verb's settings and calls the verb's function.

Options left out fall back to `--set name=value`, then to `--recipe FILE`, then to the defaults of
the settings, which stand nowhere else. Heavy imports happen when a command runs.
"""

import atexit
import dataclasses
import errno
import io
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from surgeon import __version__
from surgeon.errors import BadInput
from surgeon.settings import Leaf, leaves
from surgeon.settings.schema import Metavar, Switches, span
from surgeon.settings.verbs import VERBS, VerbRow

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TERMINATED = 128 + signal.SIGTERM
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
GONE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
    errno.ESTALE,
)  # fmt: skip
"""What the world does to files while they are used."""
GROUPS = {
    "trigger": """Find failing steps, train detectors of them, teach a checkpoint to mend them.

    NeuReasoner in five stages, each with a directory of its own: label, identify, detectors,
    reconstruct, sft.
    """
}
WIDTH = 100


class Command(click.Command):
    """A verb as a command: its options come from its settings, grouped as they are there."""

    def __init__(self, name: str, verb: str, row: VerbRow):
        settings = row.load_settings()
        self.verb, self.leaves = verb, leaves(settings)
        parameters = [p for leaf in self.leaves for p in _parameters(leaf)]
        super().__init__(name, help=settings.__doc__, params=[*parameters, *_everywhere()],
                         callback=self.call)  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own; two options that set one parameter are refused, of which it takes the
        last in silence."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=[*args])
            first: dict[str | None, click.Parameter] = {}
            for parameter in order:
                other = first.setdefault(parameter.name, parameter)
                if other is not parameter:
                    raise click.UsageError(
                        f"found {other.opts[0]} and {parameter.opts[0]}, which both set "
                        f"{parameter.name}, expected one of them.",
                        ctx,
                    )
        return super().parse_args(ctx, args)

    def call(
        self,
        recipe: str | None,
        settings: tuple[str, ...],
        no_cache: bool,
        as_json: bool,
        quiet: bool,
        **given: Any,
    ) -> None:
        """Bind recipe, settings and options (the last wins) to the verb's function; run; print."""
        from surgeon import recipes

        values = recipes.parameters_of(recipe, self.verb) if recipe else {}
        values |= dict(recipes.parse_setting(text) for text in settings)
        values |= {name: value for name, value in given.items() if value not in (None, ())}
        with _manner(no_cache, quiet):
            recipes.RecipeStep(self.verb, values).run(as_json=as_json)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by group, in the order of the settings; no word is broken."""
        by_title: dict[str, list[tuple[str, str]]] = {}
        titles = {leaf.name: _title(leaf) for leaf in self.leaves}
        for parameter in self.get_params(ctx):
            text = parameter.get_help_record(ctx)
            if text is not None and isinstance(parameter, click.Option):
                title = titles.get(str(parameter.name), "Every command")
                by_title.setdefault(title, []).append(text)
        for title, rows in by_title.items():
            with formatter.section(title):
                _write_rows(formatter, rows)


def _title(leaf: Leaf) -> str:
    return leaf.path[-2].capitalize() if len(leaf.path) > 1 else "Options"


def _write_rows(formatter: click.HelpFormatter, rows: list[tuple[str, str]]) -> None:
    """Options with their help beside them, or below where the option is long."""
    indent, column = " " * formatter.current_indent, 26
    for option, text in rows:
        lines = textwrap.wrap(
            text, formatter.width - column, break_on_hyphens=False, break_long_words=False
        ) or [""]
        first = f"{indent}{option}"
        if len(first) + 2 > column:
            formatter.write(f"{first}\n")
            first = ""
        for n, line in enumerate(lines):
            formatter.write(f"{first if n == 0 else '':<{column}}{line}".rstrip() + "\n")


def _everywhere() -> list[click.Parameter]:
    return [
        click.Option(["--recipe"], type=click.Path(dir_okay=False), metavar="FILE",
                     help="Take parameters from this command's step in a recipe."),
        click.Option(["--set", "settings"], multiple=True, metavar="NAME=VALUE",
                     help="Set a parameter by its name; dotted names work too."),
        *_manners(),
    ]  # fmt: skip


def _manners() -> list[click.Parameter]:
    """How a command behaves, whatever it does."""
    return [
        click.Option(["--json", "as_json"], is_flag=True,
                     help="Print the result as JSON, and nothing else, on standard output."),
        click.Option(["--quiet", "-q"], is_flag=True,
                     help="Show no progress, and say nothing but warnings and errors."),
        click.Option(["--no-cache"], is_flag=True, help="Keep nothing in ~/.cache/surgeon for "
                     "later runs (its size: SURGEON_CACHE_LIMIT)."),
    ]  # fmt: skip


@contextmanager
def _manner(no_cache: bool, quiet: bool) -> Iterator[None]:
    from surgeon import progress, store

    with ExitStack() as stack:
        if no_cache:
            stack.enter_context(store.unused())
        if quiet:
            stack.enter_context(progress.quiet())
        yield


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completion(leaf: Leaf) -> Complete:
    """What a shell offers for a value: the choices, directories, or files."""
    kind = leaf.members[0]
    inner = get_args(kind)[0] if leaf.many and get_args(kind) else kind
    choices = list(map(str, get_args(inner))) if get_origin(inner) is Literal else []
    marker = leaf.marker(Metavar)
    places = "dir" if marker is not None and marker.text == "DIR" else "file"
    is_place = leaf.positional or inner is Path or marker is not None

    def complete(
        context: click.Context, parameter: click.Parameter, typed: str
    ) -> list[CompletionItem]:
        if choices:
            return [CompletionItem(choice) for choice in choices if choice.startswith(typed)]
        return [CompletionItem(typed, type=places)] if is_place else []

    return complete


def _parameters(leaf: Leaf) -> list[click.Parameter]:
    """The options (or the argument) of one leaf; None and () stand for "not given"."""
    kind = leaf.members[0]
    metavar = marker.text if (marker := leaf.marker(Metavar)) else _metavar(kind)
    if leaf.positional:
        many: dict[str, Any] = dict(nargs=-1) if leaf.many else {}
        return [
            click.Argument(
                [leaf.name],
                required=False,
                metavar=metavar,
                help=leaf.help,
                shell_complete=_completion(leaf),
                **many,
            )
        ]
    short: list[click.Parameter] = []
    if switches := leaf.marker(Switches):
        short = [
            click.Option([f"--{option}", leaf.name], flag_value=value, default=None, help=text)
            for option, (value, text) in switches.options.items()
        ]
        if not switches.named:
            return short
    option = f"--{leaf.name.replace('_', '-')}"
    if kind is bool:
        both = f"{option}/--no-{option[2:]}" if leaf.default is not False else option
        return [click.Option([both], is_flag=True, default=None, help=_help(leaf))]
    if get_origin(kind) is dict:
        return []
    shape: dict[str, Any] = {}
    if leaf.many:
        fixed = [m for m in get_args(kind) if m is not Ellipsis]
        shape = dict(multiple=True) if len(fixed) == 1 else dict(nargs=len(fixed))
    text = _help(leaf, repeated="multiple" in shape)
    shape["shell_complete"] = _completion(leaf)
    named = click.Option([option, leaf.name], default=None, metavar=metavar, help=text, **shape)
    return [named, *short]


def _metavar(kind: Any) -> str:
    """What stands for a value: the choices, or its type."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_args(kind):
        return _metavar(get_args(kind)[0])
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _help(leaf: Leaf, repeated: bool = False) -> str:
    """A leaf's docstring, then its range, whether it may be repeated, and its default."""
    default = leaf.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    notes = [span(leaf.kind), "may be repeated" if repeated else ""]
    if default is not dataclasses.MISSING and default not in (None, "", False):
        notes.append(f"default: {default}")
    shown = "; ".join(filter(None, notes))
    return f"{leaf.help}  [{shown}]" if shown else leaf.help


class Door(click.Group):
    """The commands, each made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*dict.fromkeys([*map(_first_word, VERBS), *self.commands])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command(cmd_name) or self.commands.get(cmd_name)


class Stages(click.Group):
    """Verbs whose names begin alike: `trigger-label` is `surgeon trigger label`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [v.partition("-")[2] for v in VERBS if v.startswith(f"{self.name}-")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = f"{self.name}-{cmd_name}"
        return Command(cmd_name, verb, VERBS[verb]) if verb in VERBS else None


def _first_word(verb: str) -> str:
    return verb.partition("-")[0] if verb.partition("-")[0] in GROUPS else verb


def command(name: str) -> click.Command | None:
    """The command of a verb, or the group of several."""
    if name in GROUPS:
        return Stages(name, help=GROUPS[name])
    return Command(name, name, VERBS[name]) if name in VERBS else None


@click.group(
    cls=Door,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
@click.version_option(__version__, prog_name="surgeon")
def cli() -> None:
    """Model surgery and checkpoint ranking. The checkpoint is the unit of work.

    A checkpoint is a Hugging Face directory, a hub id (owner/name[@revision]), BASE+ADAPTER, a
    candidate of a family (DIR/family.json#slerp-0.45), or builtin:NAME. Every command writes one
    new directory and resumes when it is run again after a kill.

    Exit status: 0 done, 1 a defect of surgeon (with its traceback), 2 unusable input (one line on
    stderr), 130 interrupted, 143 terminated. Colours go with NO_COLOR=1. Completion in bash, also
    for zsh and fish: eval "$(_SURGEON_COMPLETE=bash_source surgeon)".
    """


@cli.command("run")
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="VERB.NAME=VALUE",
    help="Override a parameter of a step.",
)
def run(recipe: str, settings: tuple[str, ...], no_cache: bool, as_json: bool, quiet: bool) -> None:
    """Run the steps of a recipe in order; finished steps are not done again. As JSON, each step's
    result is one line."""
    from surgeon import recipes

    with _manner(no_cache, quiet):
        recipes.run(recipe, settings, as_json=as_json)


run.params += _manners()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: status 0, 1 for a defect and where nobody reads on, 2 with one line for unusable
    input, 130 when interrupted, 143 when terminated."""
    from surgeon import lineage

    try:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        words = sys.argv[1:] if arguments is None else arguments
        lineage.COMMAND.set(shlex.join(["surgeon", *words]))
        # What peft and transformers say of each other's names is not the user's concern.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        _end_on_sigterm()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file's name may be no text; that is no reason to fail.
            sys.stdout.reconfigure(errors="backslashreplace")
        with _RustErrors():
            cli.main(args=arguments, prog_name="surgeon", standalone_mode=False)
    except SystemExit as stop:
        if stop.code == TERMINATED:
            click.echo("Terminated. The same command resumes where it was.", err=True)
        raise
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. The same command resumes where it was.", err=True)
        sys.exit(130)
    except BadInput as error:
        fail(" ".join(str(error).split()))
    except BrokenPipeError:
        # Whoever read the output has seen enough (`surgeon ... | head`); Python would complain of
        # it once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in DISK_FULL:
            fail(
                f"no space left on the disk of {error.filename or 'the output'}. Free some; "
                "the same command resumes."
            )
        if error.errno in DENIED:
            fail(f"{error.filename or 'the output'} can't be written: {error.strerror}.")
        if error.errno in GONE or isinstance(error, FileNotFoundError):
            # Readers in Rust give no number, and name the file in the text.
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            fail(f"a file can't be used any more ({what}). Put it back; the same command resumes.")
        raise
    finally:
        _leave_sigterm()
        # What was to be done is done: an interrupt ends the process without a word.
        if threading.current_thread() is threading.main_thread():
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from surgeon.training import processes

        processes.end()


class _RustErrors:
    """Makes what writers in Rust (safetensors, tokenizers) say of a disk the `OSError` that it is:
    they have exceptions of their own, or none, and the number stands in the text."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number:
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _end_on_sigterm() -> None:
    """Let SIGTERM end this process as an error would: temporary files and other processes go with
    it. A second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    sys.exit(TERMINATED)


def _leave_sigterm() -> None:
    """SIGTERM is what it was: Python's own end is no place to raise anything in."""
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def fail(text: str) -> None:
    """Print one line and leave with status 2."""
    click.echo(f"Error: {text}", err=True)
    sys.exit(2)
