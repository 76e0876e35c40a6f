"""Candidates written by mergekit itself: any of its methods, and SLERP and linear on request."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, label_dtype, read_json
from surgeon.checkpoint.templates import named_template_files
from surgeon.errors import BadInput
from surgeon.families import Candidate, Family
from surgeon.families.candidate_files import (
    CHOSEN,
    OWN_FILES,
    copy_choices,
    made_by_config,
    model_card,
    write_index,
)
from surgeon.families.description import mergekit_yaml
from surgeon.families.merge_config import models_in, with_models
from surgeon.families.merge_methods import MergeConfig
from surgeon.merge.aligned import renumbered
from surgeon.merge.preflight import require_tokenizers, vocabulary

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

REFUSALS = (RuntimeError, ValueError, KeyError, IndexError, AssertionError, NotImplementedError)
"""What mergekit raises for a merge that it can't make."""


def _mergekit() -> ModuleType:
    """The package, imported; it touches numpy names that are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mergekit.config
        import mergekit.io.tasks
        import mergekit.merge
        import mergekit.merge_methods
    return mergekit


@contextlib.contextmanager
def _old_name_unsaid() -> Iterator[None]:
    """Without transformers' line about `torch_dtype`, which mergekit still sets."""
    logger = logging.getLogger("transformers.configuration_utils")

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("`torch_dtype` is deprecated")

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _configuration(
    merge: MergeConfig, family: Family, others: dict[str, Checkpoint]
) -> "MergeConfiguration":
    """mergekit's config object, every model by its absolute path."""
    # Absolute, because mergekit takes other paths for hub ids and asks the network about them; and
    # not as text, in which it takes a + for an adapter's and an @ for a revision's.
    called = {"a": family.endpoints[0], "b": family.endpoints[-1], **others}
    paths = {
        name: {"model": {"path": str(checkpoint.path.resolve())}}
        for name, checkpoint in called.items()
    }
    return _mergekit().config.MergeConfiguration.model_validate(with_models(merge, paths))


def require_valid(merge: MergeConfig, family: Family, others: dict[str, Checkpoint]) -> None:
    """Raise `BadInput` for a config that mergekit can't parse, or a method it doesn't have."""
    for checkpoint in (*family.endpoints, *others.values()):
        if not checkpoint.config.get("architectures"):
            raise BadInput(
                f"{checkpoint.spec}: config.json names no architectures, which mergekit asks for. "
                'Add them, such as "architectures": ["Qwen3ForCausalLM"].'
            )
    try:
        _mergekit().merge_methods.get(merge["merge_method"])
        configuration = _configuration(merge, family, others)
        _require_tokenizer(configuration, (*family.endpoints, *others.values()))
    except REFUSALS as error:
        text = " ".join(str(error).split())
        raise BadInput(f"mergekit refuses the merge {merge['merge_method']!r}: {text}") from error


def _require_tokenizer(configuration: "MergeConfiguration", models: tuple[Checkpoint, ...]) -> None:
    """Raise what mergekit would after merging, for a tokenizer or a template it can't make."""
    from mergekit.tokenizer.build import build_tokenizer

    template = configuration.chat_template
    if template and template != "auto":
        _mergekit().merge._set_chat_template(SimpleNamespace(), configuration)
    settings = configuration.tokenizer
    source = settings.source if settings else configuration.tokenizer_source
    if source is None:
        return
    require_tokenizers(*(models if source == "union" else ()))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        built = build_tokenizer(
            configuration.base_model,
            configuration.referenced_models(),
            source,
            False,
            add_tokens=list((settings.tokens if settings else None) or {}),
        )
    ids = built.tokenizer.get_vocab().values()
    if max(ids) >= len(ids):
        raise ValueError(
            f"the tokenizer has {len(ids)} tokens with ids up to {max(ids)}, expected none above "
            f"{len(ids) - 1}. Leave `tokenizer` out and take --vocabulary union"
        )


def write(family: Family, candidate: Candidate, work: Path, others: dict[str, Checkpoint]) -> None:
    """Merge into the existing partial directory `work`.

    Shards are those of the first endpoint where mergekit keeps its tensor names; a mixture of
    experts comes out in mergekit's fused layout and sharding.
    """
    from safetensors.torch import save_file

    mergekit = _mergekit()
    for old in work.iterdir():
        if old.name != lineage.FILE:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    # mergekit removes nothing and keeps readers by path: a new directory, and a fresh cache.
    raw = work / "mergekit"
    readers = mergekit.io.tasks.LoaderCache().loaders
    readers.clear()
    a = family.endpoints[0]
    largest = max(sum(a.tensors[n].nbytes for n in names) for names in a.shards.values())
    options = mergekit.merge.MergeOptions(
        write_model_card=False, quiet=True, random_seed=family.seed, out_shard_size=largest
    )
    try:
        with _old_name_unsaid():
            mergekit.merge.run_merge(
                _configuration(candidate.merge, family, others), str(raw), options
            )
    except REFUSALS as error:
        text = " ".join(str(error).split())
        raise BadInput(f"mergekit can't merge {candidate.name}: {text}") from error
    finally:
        readers.clear()
    merged = Checkpoint.open(raw)
    if merged.tensors.keys() == a.tensors.keys():
        for shard, names in a.shards.items():
            save_file(merged.read_many(names), work / shard, metadata={"format": "pt"})
        write_index(a, work, None, of=merged)
        merged.copy_side_files(work)
        shutil.rmtree(raw)
    else:
        for file in raw.iterdir():
            file.rename(work / file.name)
        raw.rmdir()
    label_dtype(work)
    _carry(family, candidate, work)
    lineage.write_text(work / "mergekit_config.yml", mergekit_yaml(family, candidate))
    lineage.write_text(work / "README.md", model_card(family, candidate))


def _carry(family: Family, candidate: Candidate, work: Path) -> None:
    """What isn't merged: the chosen parts and the first endpoint's other files, stop ids as the
    candidate's tokenizer has them."""
    made = made_by_config(candidate.merge, family.choices)
    first = family.endpoints[0]
    there = {file.name for file in work.iterdir()}
    templates = {first.side_name(file) for file in named_template_files(first.path)}
    first.copy_side_files(work, {*CHOSEN, *OWN_FILES, *there, *templates})
    copy_choices(family, work, there=made)
    if "tokenizer" not in made:
        return
    tokens = vocabulary(Checkpoint(work)) or {}
    donor = family.endpoints[-1 if _donor(candidate.merge) == "b" else 0]
    sources = {"generation_config.json": family.source("generation"), "config.json": donor}
    for name, source in sources.items():
        config = read_json(work / name)
        renamed = renumbered(config, _new_ids(vocabulary(source) or {}, tokens))
        if renamed != config:
            lineage.write_json(work / name, renamed)


def _donor(merge: MergeConfig) -> object:
    """The model whose config mergekit takes: the base, or the first that is named."""
    return merge.get("base_model") or next(iter(models_in(merge)), "a")


def _new_ids(before: dict[int, str], after: dict[int, str]) -> dict[int, int | None]:
    """Id in one tokenizer -> id of the same token in another, None where it has none."""
    ids = {token: i for i, token in after.items()}
    return {i: ids.get(token) for i, token in before.items()} if after else {}
