"""Candidates in memory: one live model whose parameters are rewritten for each, in place.

The values are those a written candidate would have after `from_pretrained`: mixed on the CPU,
rounded to the family's dtype, cast to the live dtype. Mixing never runs on an accelerator, whose
fused operations differ in the last bit.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from surgeon import lineage
from surgeon.checkpoint import (
    TOKENIZER_FILES,
    Checkpoint,
    config_differences,
    torch_dtype,
    use_templates,
)
from surgeon.errors import BadInput
from surgeon.families import Candidate, Family, Subject, merge_methods, mixing
from surgeon.families.cosines import merge_groups, with_cosines
from surgeon.settings.sampling import Sampling
from surgeon.threads import one_thread
from surgeon.traces import Prompt, encode, ends_of


class Materialiser:
    """One live model of a family; `model(candidate)` gives it that candidate's parameters."""

    def __init__(
        self, family: Family, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        """Load the first endpoint, map both files, and compute the cosines if not stored."""
        family.require_unchanged()
        self.family = with_cosines(family)
        a, b = family.endpoints[0], family.endpoints[-1]
        if dtype is None and family.dtype is not None:
            dtype = torch_dtype(family.dtype)
        self.live: Any = a.model(device=device, dtype=dtype)
        self.live.requires_grad_(False)
        self.state: dict[str, Tensor] = self.live.state_dict()
        if any(tensor.is_meta for tensor in self.state.values()):
            raise BadInput(
                f"{family.path} is virtual, and its candidates have no room on {device}: they are "
                "mixed in place, not on the disk. Write them (merge-sweep without --virtual), or "
                "name more devices."
            )
        self.stored = [c.read_many(list(c.tensors)) for c in (a, b)]
        self.keys = {name: group.key for group in merge_groups(a) for name in group.names}
        self.places = places(self.live, self.state, list(a.tensors))
        _require_covered(self.live, self.state, self.places)
        self._pool = ThreadPoolExecutor(2)
        self._scratch = mixing.Scratch()

    def model(self, candidate: Candidate) -> nn.Module:
        """The live model as `candidate`; the one returned before has changed with it."""
        of = candidate.endpoint if candidate.endpoint is not None else candidate.mix
        if of is None:
            raise ValueError(f"{candidate.name} is not a mix of the two endpoints")
        with torch.no_grad(), one_thread():
            for place in self.places:
                pieces = [self._tensor(of, name) for name in place.names]
                place.write(self.live, self.state, pieces)
        return self.live

    def _tensor(self, of: int | merge_methods.Mix, name: str) -> Tensor:
        """One tensor of an endpoint or of a mix, as it would lie on disk."""
        a, b = self.stored[0][name], self.stored[1][name]
        dtype = torch_dtype(self.family.dtype) if self.family.dtype else a.dtype
        if isinstance(of, int):
            return (a, b)[of]
        if not a.is_floating_point():
            return a
        recipes = [merge_methods.recipe(of, self.family.cosines.get(self.keys[name]), dtype)]
        out = torch.empty(a.shape, dtype=dtype)
        a_N, b_N, out_N = a.reshape(-1), b.reshape(-1), out.view(-1)

        def mix(span: tuple[int, int]) -> None:
            part = slice(*span)
            for chunk in mixing.mixed(a_N[part], b_N[part], recipes, dtype, self._scratch):
                out_N[part] = chunk

        for _ in self._pool.map(mix, mixing.chunks(a_N.numel())):
            pass
        return out

    def close(self) -> None:
        """Let go of the model and the worker threads."""
        self._pool.shutdown()
        self.live, self.state, self.stored, self.places = None, {}, [], []


class Place(NamedTuple):
    """Where tensors on disk go in the live model."""

    key: str
    """The live parameter's or buffer's name (the first of them for one-to-many conversions)."""
    names: tuple[str, ...]
    patterns: tuple[str, ...]
    converter: Any
    """Transformers' conversion, for parameters that it fuses or splits; None for a plain copy."""

    def write(self, model: Any, state: dict[str, Tensor], pieces: list[Tensor]) -> None:
        """Copy the pieces into the model's parameters, converted as `from_pretrained` would."""
        if self.converter is None:
            state[self.key].copy_(pieces[0])
            return
        converter = copy.deepcopy(self.converter)
        for name, pattern, piece in zip(self.names, self.patterns, pieces, strict=True):
            converter.add_tensor(self.key, name, pattern, piece)
        parameters = converter.convert(self.key, model=model, config=model.config)
        for key, value in parameters.items():
            state[key].copy_(value[0] if isinstance(value, list) else value)


def places(model: Any, state: dict[str, Tensor], names: list[str]) -> list[Place]:
    """Map the tensors of a checkpoint to the live model, with transformers' own conversions."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    of_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = model.base_model_prefix
    of_key: dict[str, Place] = {}
    for name in sorted(names, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state and name in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key not in state:
            continue  # from_pretrained ignores it too
        if pattern is None:
            of_key[key] = Place(key, (name,), (), None)
            continue
        before = of_key.get(key, Place(key, (), (), of_pattern[pattern]))
        of_key[key] = before._replace(
            names=(*before.names, name), patterns=(*before.patterns, pattern)
        )
    return list(of_key.values())


def _require_covered(model: Any, state: dict[str, Tensor], places: list[Place]) -> None:
    """Raise `BadInput` when a live tensor would keep the first endpoint's value."""
    if any(p.converter is not None and len(p.converter.target_patterns) > 1 for p in places):
        return  # one tensor on disk becomes several: from_pretrained's own check has to do
    written = {state[place.key].data_ptr() for place in places}
    left = [key for key, tensor in state.items() if tensor.data_ptr() not in written]
    if left:
        raise BadInput(
            f"A virtual family of {model.config.model_type} can't be made in memory: {left[0]} has "
            "no tensor on disk. Leave --virtual away."
        )


class OneLive:
    """The one live model of this process: a subject's, until another is taken.

    Members of a virtual family share it. `dtype` None keeps the one on disk.
    """

    def __init__(self, device: str = "cpu", dtype: torch.dtype | None = None):
        self.device, self.dtype = device, dtype
        self._making: Materialiser | None = None
        self._taken: tuple[str, str, Any, Any] | None = None

    def take(self, subject: Subject) -> tuple[Any, Any]:
        """The model in eval mode and the tokenizer; those taken before are no longer of use."""
        if self._taken is None or self._taken[:2] != (subject.spec, subject.digest):
            # Let go of the model before the next one is loaded.
            self._taken = None
            self._taken = subject.spec, subject.digest, *self._load(subject)
        return self._taken[2:]

    def _load(self, subject: Subject) -> tuple[Any, Any]:
        family, candidate = subject.family, subject.candidate
        shared = family is not None and family.virtual and _shares_config(family, candidate)
        if self._making and (
            family is None or not shared or self._making.family.path != family.path
        ):
            self._making.close()
            self._making = None
        if family is None or candidate is None or not shared:
            checkpoint = subject.checkpoint
            if checkpoint is None:
                raise ValueError(f"{subject.spec} has neither a directory nor a family")
            return checkpoint.model(device=self.device, dtype=self.dtype), checkpoint.tokenizer()
        if self._making is None:
            self._making = Materialiser(family, self.device, self.dtype)
        model: Any = self._making.model(candidate)
        if candidate.endpoint is None:
            use_generation_config(model, family.source("generation"))
            return model, tokenizer(family)
        endpoint = family.endpoints[candidate.endpoint]
        use_generation_config(model, endpoint)
        return model, endpoint.tokenizer()

    def close(self) -> None:
        """Let go of the model."""
        self._taken = None
        if self._making is not None:
            self._making.close()
            self._making = None


def live(
    members: list[Subject], device: str = "cpu", dtype: torch.dtype | None = None
) -> Iterator[tuple[Subject, Any, Any]]:
    """Yield (subject, model in eval mode, tokenizer), one model in memory at a time.

    Members of a virtual family share one live model: use each before asking for the next. `dtype`
    None keeps the one on disk.
    """
    one = OneLive(device, dtype)
    try:
        for subject in members:
            yield subject, *one.take(subject)
    finally:
        one.close()


def _shares_config(family: Family, candidate: Candidate | None) -> bool:
    """False for a second endpoint whose config differs: the shared model has the first one's."""
    if candidate is None or candidate.endpoint != 1:
        return candidate is not None
    return not config_differences(family.endpoints[0].config, family.endpoints[-1].config)


def tokenizer(family: Family) -> PreTrainedTokenizerBase:
    """The tokenizer a family's merged candidates use, with the chosen chat template."""
    chosen = family.source("tokenizer").tokenizer()
    if family.choices.template != family.choices.tokenizer:
        use_templates(chosen, family.source("template").chat_templates)
    return chosen


def stop_ids_of(subject: Subject, reader: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a subject's answers, as its model would say them."""
    source, merged = _origin(subject)
    source = merged.source("generation") if merged else source
    return ends_of(generation_config(source, source.full_config), reader)


def require_prompts(members: Sequence[Subject], prompts: Sequence[Prompt], how: Sampling) -> None:
    """Raise `BadInput` where a subject's chat template leaves out or refuses something of a prompt;
    subjects with the same tokenizer and templates are asked once."""
    seen = set()
    for subject in members:
        source, merged = _origin(subject)
        templates = merged.source("template") if merged else source
        files = [file for file in source.side_files if file.name in TOKENIZER_FILES]
        key = lineage.digest_of([templates.chat_templates, [*map(lineage.file_digest, files)]])
        if key not in seen:
            seen.add(key)
            chosen = tokenizer_of(subject)
            for prompt in prompts:
                encode(chosen, prompt, how.thinking, how.template)


def tokenizer_of(subject: Subject) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with a subject's live model, without the model."""
    source, merged = _origin(subject)
    return tokenizer(merged) if merged else source.tokenizer()


def _origin(subject: Subject) -> tuple[Checkpoint, Family | None]:
    """Where a subject's tokenizer is from, and its family where its parts were chosen."""
    family, candidate = subject.family, subject.candidate
    merged = family is not None and subject.checkpoint is None
    if family and merged and candidate and candidate.endpoint is not None:
        return family.endpoints[candidate.endpoint], None
    return subject.source, family if merged else None


def use_generation_config(model: Any, source: Checkpoint) -> None:
    """Give a live model the generation config `from_pretrained` would read beside `source`."""
    model.generation_config = generation_config(source, model.config)


def generation_config(source: Checkpoint, config: Any) -> GenerationConfig:
    """The generation config beside a checkpoint, else what a model's config says of it."""
    if (source.path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source.path)
    return GenerationConfig.from_model_config(config)


def smoke_test(path: Path) -> None:
    """Load a written candidate in plain transformers; raise `BadInput` unless it can be used.

    It must load without missing weights, give finite logits, and generate four tokens.
    """
    checkpoint = Checkpoint.open(path)
    model: Any = checkpoint.model()
    vocabulary = int(
        checkpoint.text_config.get("vocab_size", model.config.get_text_config().vocab_size)
    )
    prompt = torch.arange(8).remainder(vocabulary)[None]
    model.generation_config = _greedy(model)
    with torch.inference_mode():
        output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt))
    if not all(bool(logits_BV.isfinite().all()) for logits_BV in output.logits):
        raise BadInput("its logits are not finite")
    if output.sequences.shape[1] <= prompt.shape[1]:
        raise BadInput("it generated nothing")


def _greedy(model: Any) -> GenerationConfig:
    """Four greedy tokens, whatever the checkpoint's own settings are."""
    return GenerationConfig(
        max_new_tokens=4, min_new_tokens=1, do_sample=False, pad_token_id=0,
        eos_token_id=model.generation_config.eos_token_id,
        bos_token_id=model.generation_config.bos_token_id,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
