"""`surgeon push`: a result on the Hugging Face hub, with its card and its lineage.

pushed_files.py  which files go, without what only this machine needs
lineage_card.py  the card's section on what it was made of

No absolute path of this machine goes along: what a command line names by one goes by its name.
"""

from pathlib import Path
from typing import NamedTuple

from surgeon import lineage
from surgeon.artifact import part
from surgeon.checkpoint import is_adapter, link_or_copy
from surgeon.console import console, say, table
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.push.lineage_card import card_text, made_of, without_paths
from surgeon.push.pushed_files import files_of, size_text
from surgeon.settings import verb
from surgeon.settings.push import PushSettings
from surgeon.show import ancestry

CARD = "README.md"


@part
class PushedFile:
    """One file."""

    path: str
    """In the repository."""
    bytes: int


@part
class Pushed:
    """What went to the hub, or would in a dry run."""

    repository: str
    kind: str
    private: bool | None
    """Of a new repository; None where it existed."""
    files: tuple[PushedFile, ...]
    card: str
    message: str
    url: str | None
    """None after a dry run."""
    dry_run: bool


class PushPlan(NamedTuple):
    """What is to be pushed; nothing has been sent."""

    settings: PushSettings
    directory: Path
    kind: str
    files: dict[str, Path]
    """Path in the repository -> where it lies."""
    texts: dict[str, str]
    """Path in the repository -> its text, instead of the file's."""
    message: str


@verb(PushSettings)
def push(settings: PushSettings) -> Pushed:
    """Send a result to the hub; raises `BadInput` before anything is sent where it can't be."""
    plan = prepare(settings)
    if settings.dry_run:
        return _told(plan, None, private=not settings.public)
    staged = lineage.scratch()
    for name, source in plan.files.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in plan.texts:
            link_or_copy(source, staged / name)
    for name, text in plan.texts.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text(text, encoding="utf-8")
    url, made = _send(plan, staged)
    return _told(plan, url, private=not settings.public if made else None)


def prepare(settings: PushSettings) -> PushPlan:
    """Check names and files; raises `BadInput`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(settings.repository)
        named = settings.repository.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise BadInput(f"found repository = {settings.repository}, expected OWNER/NAME.")
    path = Path(settings.what).expanduser()
    if path.name.endswith(".partial"):
        raise BadInput(f"{path} isn't finished: run its command again first, it resumes.")
    if not path.is_dir():
        path = open_checkpoint(settings.what).path
    files = files_of(path)
    if not files:
        raise BadInput(f"{path} holds no file that could be pushed.")
    holds_weights = "config.json" in files or is_adapter(path)
    kind = settings.kind or ("model" if holds_weights else "dataset")
    record = lineage.read(path) or {}
    tree = ancestry(str(path))
    old = (path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else ""
    texts = {CARD: card_text(old, settings.repository, kind, tree, adapter=is_adapter(path))}
    for name, file in files.items():
        if file.name == lineage.FILE:
            texts[name] = without_paths(file.read_text(encoding="utf-8"))
    verb_name = record.get("verb")
    message = settings.message or (f"surgeon {verb_name}" if verb_name else "surgeon push")
    return PushPlan(settings, path, kind, files, texts, message)


def _send(plan: PushPlan, staged: Path) -> tuple[str, bool]:
    """The repository's address, and whether it was made; raises `BadInput` for a refusal."""
    from huggingface_hub import HfApi, errors

    settings = plan.settings
    api = HfApi()
    on_the_way = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    try:
        there = api.repo_exists(settings.repository, repo_type=plan.kind)
        if not there:
            api.create_repo(
                settings.repository,
                repo_type=plan.kind,
                private=not settings.public,
                exist_ok=True,
            )
        api.upload_folder(
            repo_id=settings.repository,
            repo_type=plan.kind,
            folder_path=staged,
            commit_message=plan.message,
            revision=settings.revision,
        )
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, on_the_way, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{settings.repository} could not be written: {reason}. Log in with `hf auth login` "
            "(or set HF_TOKEN) as somebody who may write there; the same command goes on."
        ) from error
    where = "" if plan.kind == "model" else f"{plan.kind}s/"
    return f"{api.endpoint}/{where}{settings.repository}", not there


def _told(plan: PushPlan, url: str | None, *, private: bool | None) -> Pushed:
    sizes = {name: file.stat().st_size for name, file in plan.files.items()}
    sizes |= {name: len(text.encode()) for name, text in plan.texts.items()}
    return Pushed(
        repository=plan.settings.repository,
        kind=plan.kind,
        private=private,
        files=tuple(PushedFile(path=name, bytes=sizes[name]) for name in sorted(sizes)),
        card=plan.texts[CARD],
        message=plan.message,
        url=url,
        dry_run=url is None,
    )


def show(found: Pushed) -> None:
    """Print what went where, and in a dry run the card."""
    total = size_text(sum(f.bytes for f in found.files))
    how = {True: "private ", False: "public ", None: ""}[found.private]
    done = "would go" if found.dry_run else "went"
    say(f"{len(found.files)} files, {total}, {done} to the {how}{found.kind} repository "
        f"{found.repository}.", style="bold")  # fmt: skip
    if not found.dry_run:
        say(str(found.url))
        return
    rows = table("file", "size")
    for file in found.files:
        rows.add_row(file.path, size_text(file.bytes))
    console().print(rows)
    say(f"\nThe card:\n\n{found.card}")
    say("Dry run: nothing was sent.")


__all__ = ["Pushed", "PushedFile", "made_of", "push", "show"]
