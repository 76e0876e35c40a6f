"""vLLM in this process: one engine for a whole family, its weights exchanged in place."""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint import DTYPES, Checkpoint, config_differences, stored_dtype
from surgeon.decoding import Answer
from surgeon.engines.servers import Counts, cut, seed_of
from surgeon.engines.started import require_vllm, written
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.live.families import stop_ids_of
from surgeon.progress import say
from surgeon.settings.engine import EngineSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import Ask, Until

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Set unless the user did: nothing is sent anywhere, and vLLM says what goes wrong only."""


class VllmEngine:
    """vLLM, with one candidate's weights at a time."""

    def __init__(self, settings: EngineSettings, dtype: "torch.dtype | None", longest: int):
        require_vllm()
        self.settings, self.longest = settings, longest
        self.dtype = None if dtype is None else str(dtype).removeprefix("torch.")
        self.loaded: Checkpoint | None = None
        """Whose config the engine was made for."""
        self.llm: Any = None
        self.swaps = 0

    def seat(self, subject: Subject, tokenizer: "PreTrainedTokenizerBase") -> "VllmSampler":
        """The sampler of this candidate: its weights take the place of those before, in place
        where its config is the same."""
        source = subject.source
        with written(subject) as directory:
            if self.llm is None or self.loaded is None or not _alike(self.loaded, source):
                self.close()
                self._start(source, directory)
            else:
                self.load(directory)
        return VllmSampler(self, subject, tokenizer)

    def load(self, directory: Path) -> None:
        """Exchange the weights for those in a directory, and forget what was cached of prompts."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        if (
            self.loaded is not None
            and self.loaded.full_config.get_text_config().tie_word_embeddings
        ):
            self.llm.collective_rpc("refresh_tied_head")
        self.llm.reset_prefix_cache()
        self.swaps += 1

    def _start(self, source: Checkpoint, directory: Path) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        vllm: Any = importlib.import_module("vllm")
        context = min(source.context, self.longest or source.context)
        stored = stored_dtype(source)
        dtype = self.dtype or (DTYPES[stored].torch if stored else "auto")
        on_cpu: bool = importlib.import_module("vllm.platforms").current_platform.is_cpu()
        say(f"starting vllm {vllm.__version__} with {source.spec}, {dtype}, context {context:,}")
        try:
            self.llm = vllm.LLM(
                str(directory), dtype=dtype, max_model_len=context, enforce_eager=on_cpu,
                tensor_parallel_size=self.settings.tensor_parallel,
                gpu_memory_utilization=self.settings.memory_share,
                skip_tokenizer_init=True, disable_log_stats=True, use_tqdm_on_load=False,
                worker_extension_cls="surgeon.engines.extension.RefreshedHead",
            )  # fmt: skip
        except (ValueError, RuntimeError, NotImplementedError, ImportError) as error:
            raise BadInput(
                f"vllm can't load {source.spec}: {' '.join(str(error).split())[:300]}"
            ) from error
        self.loaded, self.context = source, context

    def close(self) -> None:
        """Let go of the engine, its processes and its memory."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = self.loaded = None


def _alike(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints can take each other's place in a running engine."""
    return not config_differences(one.config, other.config)


class VllmSampler:
    """The candidate that the engine has now."""

    def __init__(self, engine: VllmEngine, subject: Subject, tokenizer: "PreTrainedTokenizerBase"):
        self.engine, self.context = engine, engine.context
        self.stop = stop_ids_of(subject, tokenizer)
        self.counts = Counts()
        self.begun = 0

    def answers(
        self, asks: Sequence[Ask], sampling: Sampling, until: Until | None = None
    ) -> Iterator[Answer]:
        """Yield each answer as it ends; all are in the engine's batch at once."""
        vllm: Any = importlib.import_module("vllm")
        core = self.engine.llm.llm_engine
        numbers: dict[str, int] = {}
        for index, ask in enumerate(asks):
            most = sampling.max_tokens if ask.max_tokens is None else ask.max_tokens
            most = min(most, self.context - len(ask.ids))
            if most < 1:
                raise BadInput(
                    f"prompt {ask.key[0]!r} has {len(ask.ids)} tokens with what is kept of its "
                    f"answer, expected fewer than the engine's context of {self.context}."
                )
            params = vllm.SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or -1,
                max_tokens=most, seed=seed_of(sampling.seed, ask.key),
                stop_token_ids=sorted(self.stop), detokenize=False,
            )  # fmt: skip
            self.begun += 1
            name = f"{id(self)}-{self.begun}"
            numbers[name] = index
            core.add_request(name, {"prompt_token_ids": list(ask.ids)}, params)
        try:
            while numbers:
                for output in core.step():
                    if output.finished and output.request_id in numbers:
                        index = numbers.pop(output.request_id)
                        yield self._answer(index, asks[index], output.outputs[0], until)
        finally:
            if numbers:
                core.abort_request(list(numbers))

    def _answer(self, index: int, ask: Ask, said: Any, until: Until | None) -> Answer:
        ids = list(said.token_ids)
        if said.finish_reason not in ("stop", "length"):
            raise BadInput(f"vllm broke off an answer to {ask.key[0]!r} ({said.finish_reason}).")
        if said.finish_reason == "stop" and (not ids or ids[-1] not in self.stop):
            by = said.stop_reason
            ids.append(by if isinstance(by, int) and by in self.stop else min(self.stop))
        self.counts.requests += 1
        self.counts.tokens_in += len(ask.ids)
        self.counts.tokens_out += len(ids)
        finish: Any = "stop" if ids[-1] in self.stop else "length"
        return cut(index, ids, finish, until)
