"""Real models made small: every architecture is written to disk as its users would find it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The bits of a training step depend on the number of threads: this process and those that it starts
# have the same. (Models this small don't gain by more, and the workers share the cores already.)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    # On CI the same examples each time: it judges the change, and people's own runs look further.
    derandomize="CI" in os.environ,
)
settings.load_profile("ci")

SIZE: dict[str, Any] = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "gemma2": dict(sliding_window=16),
    "gemma3_text": dict(sliding_window=16, query_pre_attn_scalar=8),
    "glm4": dict(partial_rotary_factor=0.5),
}
WORDS = [f"w{i}" for i in range(90)] + list("0123456789+-=.?") + ["\n\n", "<think>", "</think>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def write_tokenizer(path: Path, *, template: str | None = TEMPLATE) -> None:
    """A word-level tokenizer of 128 entries with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    vocabulary = [*special, "user", "assistant", "system", *WORDS]
    vocabulary += [f"x{i}" for i in range(128 - len(vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<|im_start|>",
        eos_token="<|im_end|>", unk_token="<unk>",
    )  # fmt: skip
    fast.chat_template = template
    fast.save_pretrained(path)


def write_checkpoint(
    path: Path,
    model_type: str = "qwen3",
    *,
    dtype: str = "bfloat16",
    tied: bool = True,
    seed: int = 0,
    shards: int = 1,
    noise_from: Path | None = None,
    **config: Any,
) -> Path:
    """Write a random checkpoint; with `noise_from`, a sibling of that one (its weights + noise)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    size = {**SIZE, **EXTRA.get(model_type, {}), "tie_word_embeddings": tied, **config}
    if model_type == "qwen3_vl":
        vision = dict(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
            patch_size=4, num_position_embeddings=16, deepstack_visual_indexes=[0],
        )  # fmt: skip
        settings_ = AutoConfig.for_model(
            model_type, text_config=size, vision_config=vision, tie_word_embeddings=tied
        )
        model: Any = AutoModelForImageTextToText.from_config(settings_)
    else:
        settings_ = AutoConfig.for_model(model_type, **size)
        model = AutoModelForCausalLM.from_config(settings_)
    if noise_from is not None:
        from surgeon.checkpoint import Checkpoint

        model.load_state_dict(Checkpoint.open(noise_from).model(dtype=torch.float32).state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    else:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
                elif "norm" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = model.to(getattr(torch, dtype))
    size_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    path.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(
            path, max_shard_size=size_bytes if shards == 1 else size_bytes // shards
        )
    write_tokenizer(path)
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "pad_token_id": 0, "do_sample": True})
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory):
    """The cache is the session's own, in the processes that it starts too."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def make_checkpoint():
    """`make_checkpoint(path, model_type=..., dtype=..., tied=..., seed=..., shards=...)`."""
    return write_checkpoint


@pytest.fixture(scope="session")
def pico_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sharded sibling checkpoints; shared by the whole session, so never written to."""
    root = tmp_path_factory.mktemp("pico")
    a = write_checkpoint(root / "a", shards=3)
    return a, write_checkpoint(root / "b", shards=3, seed=1, noise_from=a)


@pytest.fixture
def pico_pair(pico_source: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Private copies of two sharded bf16 sibling checkpoints that a test may damage."""
    a, b = (Path(shutil.copytree(p, tmp_path / p.name)) for p in pico_source)
    return a, b
