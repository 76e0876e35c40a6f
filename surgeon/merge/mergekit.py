"""Candidates written by mergekit itself: any of its methods, and SLERP and linear on request."""

import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, label_dtype
from surgeon.errors import BadInput
from surgeon.families import Candidate, Family
from surgeon.families.candidate_files import copy_choices, model_card, write_index
from surgeon.families.merge_config import mergekit_yaml, with_models
from surgeon.families.merge_methods import MergeConfig

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

OWN_TOKENIZER = ("tokenizer_source", "tokenizer", "chat_template")
"""Keys of a merge config with which mergekit makes the tokenizer itself."""


def _mergekit() -> ModuleType:
    """The package, imported; it touches numpy names that are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mergekit.config
        import mergekit.io.tasks
        import mergekit.merge
        import mergekit.merge_methods
    return mergekit


def _configuration(
    merge: MergeConfig, family: Family, others: dict[str, Checkpoint]
) -> "MergeConfiguration":
    """mergekit's config object, every model by its absolute path."""
    # Absolute, because mergekit takes other paths for hub ids and asks the network about them.
    called = {"a": family.endpoints[0], "b": family.endpoints[-1], **others}
    paths = {name: str(checkpoint.path.resolve()) for name, checkpoint in called.items()}
    return _mergekit().config.MergeConfiguration.model_validate(with_models(merge, paths))


def require_valid(merge: MergeConfig, family: Family, others: dict[str, Checkpoint]) -> None:
    """Raise `BadInput` for a config that mergekit can't parse, or a method it doesn't have."""
    try:
        _mergekit().merge_methods.get(merge["merge_method"])
        _configuration(merge, family, others)
    except (RuntimeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"mergekit refuses the merge {merge['merge_method']!r}: {text}") from error


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
        mergekit.merge.run_merge(_configuration(candidate.merge, family, others), str(raw), options)
    except (RuntimeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"mergekit can't merge {candidate.name}: {text}") from error
    finally:
        readers.clear()
    merged = Checkpoint.open(raw)
    if merged.tensors.keys() == a.tensors.keys():
        for shard, names in a.shards.items():
            save_file(merged.read_many(names), work / shard, metadata={"format": "pt"})
        write_index(a, work, family.dtype)
        merged.copy_side_files(work)
        shutil.rmtree(raw)
    else:
        for file in raw.iterdir():
            file.rename(work / file.name)
        raw.rmdir()
    label_dtype(work)
    if not any(key in candidate.merge for key in OWN_TOKENIZER):
        copy_choices(family, work)
    lineage.write_text(work / "mergekit_config.yml", mergekit_yaml(family, candidate))
    lineage.write_text(work / "README.md", model_card(family, candidate))
