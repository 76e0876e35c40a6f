"""Every kind of unusable input, from the command line: one line, status 2, nothing written."""

import json
import shutil
import struct
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import test_checkpoint as damages
import torch
from safetensors.torch import load_file, save_file

from surgeon import cli
from surgeon.checkpoint import INDEX

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    """A directory with two checkpoints `a` and `b` and a mini-set, made the current one."""
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that a refused command prints; nothing but the inputs is there afterwards."""
    before = sorted(p.name for p in Path().iterdir())
    with pytest.raises(SystemExit) as caught:
        cli.main(list(command))
    line = capsys.readouterr().err
    assert caught.value.code == 2, line
    assert line.startswith("Error: ") and line.count("\n") == 1, line
    assert sorted(p.name for p in Path().iterdir()) == before
    return line


DAMAGES = [
    damages.damage_truncate, damages.damage_header, damages.damage_missing_shard,
    damages.damage_index_outside, damages.damage_index_lies, damages.damage_no_config,
    damages.damage_config, damages.damage_remote_code, damages.damage_pickle,
    damages.damage_no_weights,
]  # fmt: skip
COMMANDS = {
    "merge-sweep": ["merge-sweep", "b", "a", "--out", "out"],
    "rank": ["rank", "b", "a", "--mini-set", "mini.jsonl", "--out", "out"],
    "transplant": ["transplant", "--recipient", "b", "--donor", "a", "--mask", "m", "--out", "out"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint(place: Path, capsys, damage, command: list[str]):
    damage(place / "a")
    # (The directory `a` has lost its config, so it may be named as a directory without one.)
    assert "a" in refused(capsys, *command)


def change_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


# --- checkpoints whose files or config do not say the same ----------------------------------------


def only_shard(path: Path) -> Path:
    """A shard of a directory, the first."""
    return sorted(path.glob("model-*.safetensors"))[0]


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Edit the tensors of the first shard; the index follows."""
    shard = only_shard(path)
    tensors = load_file(shard)
    before = set(tensors)
    edit(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    index = json.loads((path / INDEX).read_text())
    places = {k: v for k, v in index["weight_map"].items() if k not in before - set(tensors)}
    change_index(path, weight_map=places | dict.fromkeys(tensors, shard.name))


def add(name: str, shape: tuple[int, ...] = (4, 4), dtype: torch.dtype = torch.bfloat16):
    """A damage: a tensor more."""

    def damage(path: Path) -> None:
        edit_tensors(path, lambda t: t.update({name: torch.ones(shape).to(dtype)}))

    return damage


def configured(**changes):
    """A damage: other settings in config.json."""
    return lambda path: change_config(path, **changes)


def layered(n: int):
    """A damage: another number of layers."""
    return configured(num_hidden_layers=n, layer_types=None)


def indexed(**changes):
    """A damage: other content of the index."""
    return lambda path: change_index(path, **changes)


def quantised(method: str | None, **settings):
    """A damage: a quantization_config."""
    named = {} if method is None else {"quant_method": method}
    return configured(quantization_config=named | settings)


def change_index(path: Path, **changes) -> None:
    index = json.loads((path / INDEX).read_text())
    (path / INDEX).write_text(json.dumps(index | changes))


def drop(ending: str) -> Callable[[Path], None]:
    """A damage: the tensors with that ending are gone from the files and the index."""

    def damage(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        for shard in sorted(path.glob("model-*.safetensors")):
            tensors = {k: v for k, v in load_file(shard).items() if not k.endswith(ending)}
            save_file(tensors, shard, metadata={"format": "pt"})
        places = {k: v for k, v in index["weight_map"].items() if not k.endswith(ending)}
        change_index(path, weight_map=places)

    return damage


def stray_single(path: Path) -> None:
    shutil.copy(only_shard(path), path / "model.safetensors")


def twice(path: Path) -> None:
    first, second = sorted(path.glob("model-*.safetensors"))[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor}, second, metadata={"format": "pt"})


def loose_shards(path: Path) -> None:
    (path / INDEX).unlink()


def gguf_beside(path: Path) -> None:
    damages.damage_no_weights(path)
    (path / "model.gguf").write_bytes(b"GGUF")


def header(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """A damage: another header before the same bytes."""

    def damage(path: Path) -> None:
        shard = only_shard(path)
        content = shard.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8 : 8 + length])
        edit(entries)
        text = json.dumps(entries).encode()
        shard.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def first_tensor(entries: dict) -> dict:
    return entries[next(name for name in entries if name != "__metadata__")]


def overlap(entries: dict) -> None:
    pairs = [e for name, e in entries.items() if name != "__metadata__"]
    same = [e for e in pairs if e["shape"] == pairs[-1]["shape"] and e is not pairs[-1]]
    same[0]["data_offsets"] = pairs[-1]["data_offsets"]


def as_fp8(path: Path) -> None:
    def scale(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("_proj.weight"))
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_tensors(path, scale)


def nan_in_config(path: Path) -> None:
    change_config(path, rms_norm_eps=float("nan"))


def packed(settings: dict | None, parts: Callable[[str, int, int], dict[str, torch.Tensor]]):
    """A damage: what each projection's weight (out, in) is packed into, under its own name."""

    def damage(path: Path) -> None:
        places = {}
        for shard in sorted(path.glob("model-*.safetensors")):
            tensors = load_file(shard)
            for name in [n for n in tensors if n.endswith("_proj.weight")]:
                out_features, in_features = tensors.pop(name).shape
                tensors |= parts(name.removesuffix(".weight"), out_features, in_features)
            save_file(tensors, shard, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, shard.name)
        change_index(path, weight_map=places)
        if settings is not None:
            change_config(path, quantization_config=settings)

    return damage


def gptq_parts(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
    """As AutoGPTQ and GPTQModel write 4 bits in groups of 16."""
    return {
        f"{name}.qweight": torch.zeros(into // 8, out, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(into // 16, out // 8, dtype=torch.int32),
        f"{name}.scales": torch.ones(into // 16, out, dtype=torch.float16),
        f"{name}.g_idx": torch.arange(into, dtype=torch.int32) // 16,
    }


def awq_parts(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
    """As AutoAWQ writes them, version gemm: packed along the outputs."""
    return {
        f"{name}.qweight": torch.zeros(into, out // 8, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(into // 16, out // 8, dtype=torch.int32),
        f"{name}.scales": torch.ones(into // 16, out, dtype=torch.float16),
    }


def torchao_parts(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
    """As torchao flattens its int4 tensors into safetensors."""
    return {
        f"{name}._weight_qdata": torch.zeros(out, into // 2, dtype=torch.uint8),
        f"{name}._weight_scale": torch.ones(into // 16, out, dtype=torch.bfloat16),
        f"{name}._weight_zero_point": torch.zeros(into // 16, out, dtype=torch.bfloat16),
    }


GPTQ = dict(bits=4, group_size=16, desc_act=False, sym=True, quant_method="gptq")
AWQ = dict(bits=4, group_size=16, zero_point=True, version="gemm", quant_method="awq")
TORCHAO = dict(
    quant_method="torchao",
    quant_type={"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 16}}},
)


def autogptq(path: Path) -> None:
    """Before transformers knew the kind, its settings lay in a file of their own."""
    packed(None, gptq_parts)(path)
    (path / "quantize_config.json").write_text(json.dumps(GPTQ))


def torchao_pickle(path: Path) -> None:
    damages.damage_pickle(path)
    change_config(path, quantization_config=TORCHAO)


def nested_config(path: Path) -> None:
    (path / "config.json").write_text('{"x":' + "[" * 100_000 + "]" * 100_000 + "}")


LAYER = "model.layers.0.self_attn.q_proj"
BAD_CHECKPOINTS = {
    "a config of a hundred thousand levels": (nested_config, "can't be read as JSON"),
    "single file beside an index": (stray_single, "model.safetensors and an index"),
    "a tensor in two shards": (twice, "twice"),
    "shards without an index": (loose_shards, "fetch the index"),
    "a GGUF file beside no weights": (gguf_beside, "model.gguf"),
    "an empty weight map": (indexed(weight_map={}), "names no tensor"),
    "no metadata in the index": (indexed(metadata=None), "metadata"),
    "a weight map that is a list": (indexed(weight_map=[]), "not a safetensors index"),
    "weights named in the config": (
        configured(transformers_weights="other.safetensors"), "transformers_weights"),
    "tensors that overlap": (header(overlap), "corrupt safetensors header"),
    "a negative size": (
        header(lambda h: first_tensor(h).update(shape=[-1, 4])), "corrupt safetensors header"),
    "a dtype of no one": (
        header(lambda h: first_tensor(h).update(dtype="F99")), "corrupt safetensors header"),
    "a shape that isn't one": (
        header(lambda h: first_tensor(h).update(shape="x")), "corrupt safetensors header"),
    "another FFN width": (configured(intermediate_size=64), "intermediate_size = 64"),
    "another width": (configured(hidden_size=64), "hidden_size = 64"),
    "another vocabulary": (configured(vocab_size=136), "vocab_size = 136"),
    "more heads": (configured(num_attention_heads=8), "self_attn.o_proj"),
    "more key heads": (configured(num_key_value_heads=4), "k_proj"),
    "fewer layers": (layered(2), "num_hidden_layers = 2"),
    "more layers": (layered(4), "lacks"),
    "a billion layers": (layered(10**9), "num_hidden_layers = 1000000000"),
    "no layers": (layered(0), "num_hidden_layers = 0"),
    "a width in words": (configured(hidden_size="wide"), "hidden_size"),
    "a width of nothing": (configured(hidden_size=0), "hidden_size = 0"),
    "NaN in the config": (nan_in_config, "rms_norm_eps = NaN"),
    "a model type that isn't text": (configured(model_type=7), "model_type"),
    "a model type of no one": (configured(model_type="qwen9"), "qwen9"),
    "another model type": (configured(model_type="llama"), "k_norm"),
    "an untied head that isn't there": (
        configured(tie_word_embeddings=False), "tie_word_embeddings is false"),
    "a classifier": (configured(architectures=["Qwen3ForSequenceClassification"]), "no text"),
    "a missing norm": (drop("model.norm.weight"), "model.norm.weight"),
    "a missing projection": (drop("layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj"),
    "scales without their config": (add(f"{LAYER}.weight_scale_inv"), "quantization_config"),
    "packed weights": (add(f"{LAYER}.qweight", dtype=torch.int32), "quantization_config"),
    "FP8 without scales": (as_fp8, "F8_E4M3"),
    "an adapter never merged": (add(f"{LAYER}.lora_A.weight"), "never merged"),
    "a bias without a place": (add(f"{LAYER}.bias", (32,)), f"{LAYER}.bias"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "bitsandbytes"),
    "GPTQ": (quantised("gptq", bits=4), "base_model in its README"),
    "AWQ": (quantised("awq", bits=4), "awq"),
    "FP8": (quantised("fp8"), "(fp8), and the files hold no scales"),
    "compressed-tensors": (quantised("compressed-tensors", config_groups={}), "compressed-tensors"),
    "MXFP4": (quantised("mxfp4"), "(mxfp4), and the files hold no scales"),
    "GPTQ as it is written": (packed(GPTQ, gptq_parts), "(gptq)"),
    "AutoGPTQ's own settings": (autogptq, "the checkpoint that it was made from"),
    "AWQ as it is written": (packed(AWQ, awq_parts), "(awq)"),
    "AWQ without its config": (packed(None, awq_parts), "the checkpoint that it was made from"),
    "torchao as it is written": (packed(TORCHAO, torchao_parts), "(torchao)"),
    "torchao without its config": (
        packed(None, torchao_parts), "the checkpoint that it was made from"),
    "torchao in a pickle": (torchao_pickle, "torchao): its numbers"),
    "HQQ": (quantised("hqq"), "base_model in its README"),
    "a method of no one": (quantised("magic"), "magic"),
    "no method": (quantised(None, bits=4), "unnamed method"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_checkpoint_that_contradicts_itself(place: Path, capsys, name: str):
    damage, words = BAD_CHECKPOINTS[name]
    damage(place / "a")
    line = refused(capsys, *COMMANDS["merge-sweep"])
    assert words in line and "a" in line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.parametrize(
    "name",
    [
        "single file beside an index", "another FFN width", "FP8", "GPTQ as it is written",
        "AWQ as it is written", "torchao as it is written",
    ],
)  # fmt: skip
def test_every_verb_refuses_it(place: Path, capsys, name: str, command: list[str]):
    damage, words = BAD_CHECKPOINTS[name]
    damage(place / "a")
    assert words in refused(capsys, *command)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("m.gguf", b"", "no GGUF file"),
        ("m.gguf", b"PK\x03\x04 a zip", "no GGUF file"),
        ("m-00001-of-00002.gguf", b"GGUF", "part 1 of 2"),
        ("model.safetensors", b"", "is a file"),
    ],
)
def test_a_file_in_the_place_of_a_checkpoint(
    place: Path, capsys, file: str, content: bytes, words: str
):
    (place / file).write_bytes(content)
    assert words in refused(capsys, "rank", file, "--mini-set", "mini.jsonl", "--out", "out")


def test_a_gguf_file_without_its_package(place: Path, capsys, monkeypatch):
    (place / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    line = refused(capsys, "rank", "m.gguf", "--mini-set", "mini.jsonl", "--out", "out")
    assert "surgeon[gguf]" in line


def test_checkpoints_of_different_shape(place: Path, capsys, make_checkpoint):
    shutil.rmtree(place / "b")
    make_checkpoint(place / "b", hidden_size=16)
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "hidden_size" in line or "shape" in line


def test_checkpoints_of_different_vocabulary_name_the_first_differing_token(place: Path, capsys):
    file = place / "b" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    file.write_text(json.dumps(tokenizer))
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "w3" in line and "w4" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "mini.jsonl"),
        ('{"prompt": "w1"}\n{"prompt": \n', "mini.jsonl:2"),
        ('{"prompt": "w1"}\n{"text": "w1"}\n', "mini.jsonl:2"),
        ('{"id": 1, "prompt": "w1"}\n{"id": 1, "prompt": "w2"}\n', "mini.jsonl:2"),
        ('["w1"]\n', "mini.jsonl:1"),
        ('{"messages": [{"role": "user"}]}\n', "mini.jsonl:1"),
    ],
)
def test_an_empty_or_malformed_mini_set_is_named_by_its_line(
    place: Path, capsys, content: str, words: str
):
    (place / "mini.jsonl").write_text(content)
    assert words in refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")


PROMPT_FILES: dict[str, tuple[str, bytes | str, str]] = {
    "an array that breaks off": ("p.json", '[{"prompt": "w1"},\n{"prompt": ', "p.json:2: found no"),
    "an array without commas": ("p.json", '[{"prompt": "w1"}\n{"prompt": "w2"}]', "expected ']'"),
    "two arrays": ("p.json", '[{"prompt": "w1"}]\n[]', "p.json:2: found text after the array"),
    "half a character": ("p.jsonl", '{"prompt": "w1 \\ud800"}', "p.jsonl:1: found half a char"),
    "half an id": ("p.jsonl", '{"prompt": "w1", "id": "\\udc00"}', "(\\udc00) in id"),
    "Latin-1": ("p.jsonl", b'{"prompt": "w1"}\n{"prompt": "\xe9"}', "p.jsonl:2: found bytes that"),
    "Latin-1 in a table": ("p.csv", b"prompt\nw1\n\xe9\n", "p.csv:3: found bytes that are not"),
    "cut UTF-16": ("p.jsonl", b"\xff\xfe{", "is not UTF-16 text"),
    "a short row": ("p.csv", "prompt,answer\nw1\n", "p.csv:2: found 1 cells, expected 2"),
    "a long row": ("p.csv", "prompt,answer\nw1,2,3\n", "p.csv:2: found 3 cells, expected 2"),
    "an open quote": ("p.csv", 'prompt\n"w1\n', "p.csv:2: found no valid row"),
    "a column twice": ("p.csv", "prompt,prompt\nw1,w2\n", "the column 'prompt' twice"),
    "a table of nothing": ("p.csv", "prompt\n", "holds no prompts"),
    "a table without a question": ("p.csv", "text\nw1\n", "found the columns text, expected"),
    "no Parquet": ("p.parquet", "PAR1", "is not a readable Parquet file"),
    "two questions": ("p.jsonl", '{"question": "w1", "problem": "w2"}', "question and problem"),
    "choices": ("p.jsonl", '{"question": "w1", "choices": ["w2"]}', "found choices beside"),
    "a speaker": ("p.jsonl", '{"conversations": [{"from": "x", "value": "w1"}]}', "from 'x'"),
    "an image": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        "a part of a message of type 'image'",
    ),
    "images": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": "w1", "images": ["x"]}]}',
        "found images in a message",
    ),
    "an old call": (
        "p.jsonl",
        '{"messages": [{"role": "assistant", "content": "w1", "function_call": {"name": "f"}}]}',
        "found function_call",
    ),
    "a call without a name": (
        "p.jsonl", '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "found a tool call",
    ),
    "a tool without a name": ("p.jsonl", '{"prompt": "w1", "tools": [{"x": 1}]}', "found the tool"),
    "two system messages": (
        "p.jsonl",
        '{"system": "w1", "messages": [{"role": "system", "content": "w2"}, '
        '{"role": "user", "content": "w3"}]}',
        "two system messages",
    ),
    "no number": ("p.jsonl", '{"prompt": "w1", "answer": NaN}', "found nan as answer"),
    "answers": ("p.jsonl", '{"prompt": "w1", "answer": ["1", "2"]}', "found a list as answer"),
    "an empty id": ("p.jsonl", '{"prompt": "w1", "id": ""}', "found an empty str as id"),
    "tools without a place": (
        "p.jsonl",
        '{"prompt": "w1", "tools": [{"name": "w2"}]}',
        "prompt '1': the chat template leaves out the tools",
    ),
    "calls without a place": (
        "p.jsonl",
        '{"messages": [{"role": "assistant", "tool_calls": [{"name": "w5"}]}, '
        '{"role": "tool", "content": "w1"}]}',
        "leaves out a tool call of message 1",
    ),
    "reasoning without a place": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", '
        '"reasoning_content": "w3"}, {"role": "user", "content": "w4"}]}',
        "leaves out the reasoning of message 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPT_FILES)
def test_a_file_of_prompts_that_cant_be_asked(place: Path, capsys, case: str):
    name, content, words = PROMPT_FILES[case]
    (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refused(capsys, "rank", "a", "--mini-set", name, "--out", "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--columns", "prompt"], "found columns prompt=, expected NAME=COLUMN"),
        (["--columns", "question=prompt"], "with a NAME of prompt, messages, answer"),
        (["--columns", "prompt=prompt,messages=prompt"], "prompt or messages, not both"),
        (["--columns", "prompt=text"], "mini.jsonl:1: found no column 'text' for prompt"),
        (["--columns", "answer=gold"], "mini.jsonl:1: found no column 'gold' for answer"),
        (["--template", "rag"], "found the chat template 'rag', expected one of the checkpoint's"),
    ],
)
def test_columns_and_templates_that_arent_there(
    place: Path, capsys, options: list[str], words: str
):
    command = ("rank", "a", "--mini-set", "mini.jsonl", "--out", "out", *options)
    assert words in refused(capsys, *command)


def test_a_choice_of_templates_without_a_default(place: Path, capsys):
    (place / "a" / "chat_template.jinja").unlink()
    (place / "a" / "additional_chat_templates").mkdir()
    (place / "a" / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    line = refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")
    assert "found the chat templates rag and no default" in line and "--template NAME" in line


def test_a_template_that_is_no_text(place: Path, capsys):
    (place / "a" / "chat_template.jinja").write_bytes(b"\xff")
    line = refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")
    assert "chat_template.jinja is not UTF-8 text" in line


def test_a_directory_of_prompts(place: Path, capsys):
    assert "is a directory" in refused(capsys, "rank", "a", "--mini-set", "b", "--out", "out")


def test_tags_of_thinking_that_the_tokenizer_cant_write(place: Path, capsys):
    for name in ("easy", "hard"):
        rows = (
            f'{{"id": "{name}-{n}", "prompt": "w{n} {name}", "answer": "1"}}\n' for n in range(4)
        )
        (place / f"{name}.jsonl").write_text("".join(rows))
    line = refused(
        capsys, "early-stop", "a", "--easy", "easy.jsonl", "--hard", "hard.jsonl", "--out", "out",
        "--think-tags", "[A] [/A]",
    )  # fmt: skip
    assert "expected [/A] in it. Name the tags of this model with --think-tags" in line


def test_an_unknown_score(place: Path, capsys):
    line = refused(
        capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--select", "acc"
    )
    assert "found select = acc, expected" in line and "agreement" in line


def test_an_output_that_is_there_already(place: Path, capsys):
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("")
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "not written by surgeon" in line or "exists" in line


def test_an_output_of_other_arguments_names_what_differs(place: Path, capsys):
    cli.main(["merge-sweep", "a", "b", "--out", "out", "--virtual", "--ratios", "0.5"])
    capsys.readouterr()
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--virtual", "--ratios", "0.25")
    assert "0.5" in line and "0.25" in line


def test_no_space(place: Path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "GB free" in line
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--config", "nowhere.yaml")
    assert "nowhere.yaml" in line


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "--mini-set", "mini.jsonl", "--out", "out"],
        ["rank", "nowhere", "--mini-set", "mini.jsonl", "--out", "out"],
        ["rank", "a", "--out", "out"],
        ["evaluate", "a", "--task", "mini.jsonl", "--out", "out"],
        ["run", "nowhere.yaml"],
        ["rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--set", "tok_k=3"],
        ["merge-sweep", "a", "b", "--out", "out", "--ratios", "2:1:0.1"],
        ["merge-sweep", "a", "b", "--out", "out", "--method", "sleep"],
        ["merge-sweep", "a", "b", "a", "--out", "out"],
        ["merge-sweep", "a", "--uniform", "--out", "out"],
        ["rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--measure-s", "5"],
        ["rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--curve", "9:1:2"],
        ["rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--curve", "50"],
        ["rank", "nothing-*", "--mini-set", "mini.jsonl", "--out", "out"],
        ["soup", "a", "--out", "out"],
    ],
    ids=lambda c: " ".join(c),
)
def test_a_command_that_asks_for_the_impossible(place: Path, capsys, command: list[str]):
    refused(capsys, *command)


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def adapted(place: Path) -> Path:
    """`place` with a LoRA adapter of `a`."""
    import torch
    from peft import LoraConfig, get_peft_model

    from surgeon.checkpoint import Checkpoint

    torch.manual_seed(0)
    tuned = get_peft_model(
        Checkpoint.open(place / "a").model(),  # pyright: ignore[reportArgumentType]
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(str(place / "lora"))
    (place / "lora" / "README.md").unlink(missing_ok=True)
    return place


RANK = ["rank", "a+lora", "b", "--mini-set", "mini.jsonl", "--out", "out"]


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "lora", "--mini-set", "mini.jsonl", "--out", "out"],
        ["evaluate", "lora", "--task", "mini.jsonl", "--out", "out"],
        ["merge-sweep", "a", "lora", "--out", "out"],
        ["transplant", "--recipient", "a", "--donor", "lora", "--mask", "m", "--out", "out"],
        ["distill", "lora", "--pool", "mini.jsonl", "--out", "out"],
        ["monitor", "lora", "--prompts", "mini.jsonl", "--out", "out"],
        ["extract-lora", "lora", "--base", "a", "--rank", "2", "--out", "out"],
    ],
    ids=lambda c: c[0],
)
def test_a_bare_adapter_is_told_to_name_its_base(adapted: Path, capsys, command: list[str]):
    rows = [{"prompt": "w1", "answer": "1"}, {"prompt": "w2", "answer": "2"}]
    (adapted / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Name its base too" in refused(capsys, *command)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "acts beside the weights"),
        ({"peft_type": "IA3"}, "Merge it with PEFT first"),
        ({"peft_type": "SOMETHING_NEW"}, "found a SOMETHING_NEW adapter"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"task_type": "SEQ_CLS"}, "expected CAUSAL_LM"),
        ({"target_modules": ["q_proj", "k_proj"]}, "lacks the weights of k_proj"),
    ],
)
def test_an_adapter_of_another_kind(adapted: Path, capsys, changes: dict, words: str):
    file = adapted / "lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert words in refused(capsys, *RANK)


def damage_adapter_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def damage_adapter_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 40)


def damage_adapter_gone(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def damage_adapter_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def damage_adapter_half(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    last = "layers.1.self_attn.q_proj.lora_B"
    save_file({k: v for k, v in load_file(file).items() if last not in k}, file)


def damage_adapter_names(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file({k.replace("q_proj", "c_attn"): v for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "damage",
    [
        damage_adapter_config, damage_adapter_weights, damage_adapter_gone, damage_adapter_pickle,
        damage_adapter_half, damage_adapter_names,
    ],
    ids=lambda d: d.__name__,
)  # fmt: skip
def test_a_damaged_adapter(adapted: Path, capsys, damage):
    damage(adapted / "lora")
    assert "lora" in refused(capsys, *RANK)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["rank", "a+nowhere", "--mini-set", "mini.jsonl", "--out", "out"], "no adapter"),
        (["rank", "a+b", "--mini-set", "mini.jsonl", "--out", "out"], "not a PEFT adapter"),
        (["rank", "nowhere+lora", "--mini-set", "mini.jsonl", "--out", "out"], "nowhere"),
        (["extract-lora", "b", "--base", "a", "--out", "out"], "rank and energy"),
        (["extract-lora", "b", "--base", "a", "--rank", "0", "--out", "out"], "at least 1"),
        (["extract-lora", "b", "--base", "a", "--energy", "2", "--out", "out"], "at most 1"),
        (["extract-lora", "a", "--base", "a", "--rank", "2", "--out", "out"], "nothing to extract"),
        (["extract-lora", "b", "--rank", "2", "--out", "out"], "lacks base"),
    ],
    ids=lambda c: " ".join(c) if isinstance(c, list) else "",
)
def test_adapters_and_extractions_that_cant_be(adapted, capsys, command: list[str], words: str):
    assert words in refused(capsys, *command)


def test_a_cache_limit_that_is_no_size(adapted: Path, capsys, monkeypatch):
    monkeypatch.setenv("SURGEON_CACHE_LIMIT", "plenty")
    assert "expected a size such as 20GB" in refused(capsys, *RANK)


def test_mergekit_needs_the_architectures_that_a_config_leaves_out(place: Path, capsys):
    change_config(place / "a", architectures=None)
    line = refused(
        capsys, "merge-sweep", "b", "a", "--out", "out", "--ratios", "0.5",
        "--set", "engine=mergekit",
    )  # fmt: skip
    assert "architectures" in line and "Qwen3ForCausalLM" in line


# --- vocabularies ---------------------------------------------------------------------------------

LINEAR = (
    "{merge_method: linear, models: [{model: a, parameters: {weight: 0.5}}, "
    "{model: b, parameters: {weight: 0.5}}]"
)
"""The opening of a merge; the rest of its keys and a brace are added."""
UNITED = f"merge: {LINEAR}, tokenizer: {{source: union}}}}\n"
VOCABULARIES: dict[str, tuple[str, list[str], str]] = {
    "--vocabulary beside a tokenizer": (
        UNITED, ["--vocabulary", "crop"], "--vocabulary crop and a `tokenizer`"),
    "--tokenizer beside a tokenizer": (
        UNITED, ["--tokenizer", "second"], "--tokenizer second and a `tokenizer`"),
    "a tokenizer beside its source": (
        f"merge: {LINEAR}, tokenizer_source: union, tokenizer: {{source: union}}}}", [],
        "specify both tokenizer"),
    "a tokenizer in some merges": (
        f"{UNITED}---\n"
        "merge: {merge_method: ties, base_model: a, models: [{model: b, parameters: {weight: 1}}]}",
        [], "in some merges and not in"),
    "a template of no one": (
        f"merge: {LINEAR}, chat_template: nonsense}}", [], "Invalid chat template: nonsense"),
    "a tokenizer of no one": (
        f"merge: {LINEAR}, tokenizer_source: nowhere/x}}", [], "nowhere/x"),
    "a tokenizer that is a number": (f"merge: {LINEAR}, tokenizer_source: 7}}", [], "tokenizer"),
    "a token from nowhere": (
        f"merge: {LINEAR}, tokenizer: {{source: union, tokens: {{w1: {{source: nowhere/x}}}}}}}}",
        [], "nowhere/x"),
}  # fmt: skip


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_merge_config_and_its_tokenizer(place: Path, capsys, case: str):
    text, options, words = VOCABULARIES[case]
    (place / "m.yaml").write_text(text)
    command = ["merge-sweep", "a", "b", "--out", "out", "--config", "m.yaml", *options]
    assert words in refused(capsys, *command)


@pytest.mark.parametrize(
    ("rows", "how", "words"),
    [
        (120, "crop", "leaves 120 rows, and the tokenizer has 128 tokens. Take --vocabulary pad"),
        (144, "union", "b has no tokenizer"),
        (144, "crop", "b has no tokenizer"),
    ],
)
def test_vocabularies_that_cant_be_fitted(
    place: Path, capsys, make_checkpoint, rows: int, how: str, words: str
):
    shutil.rmtree(place / "b")
    make_checkpoint(place / "b", vocab_size=rows)
    if "no tokenizer" in words:
        for file in (place / "b").glob("tokenizer*"):
            file.unlink()
    assert words in refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--vocabulary", how)


def test_a_union_by_mergekit_needs_two_tokenizers(place: Path, capsys):
    (place / "m.yaml").write_text(UNITED)
    for file in (place / "b").glob("tokenizer*"):
        file.unlink()
    command = ["merge-sweep", "a", "b", "--out", "out", "--config", "m.yaml"]
    assert "b has no tokenizer" in refused(capsys, *command)


def test_a_vocabulary_of_no_kind(place: Path, capsys):
    assert "crop" in refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--vocabulary", "x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "somewhere"], "found engine = somewhere, expected local, vllm or URL#MODEL"),
        (["--engine", "vllm"], "needs vllm, which isn't installed"),
        (["--engine", "http://127.0.0.1:9/v1#a"], "2 candidates and one server"),
        (["--engine", "http://127.0.0.1:9/v1#{name}"], "can't be reached"),
        (["--serve-command", "vllm serve"], "without a server to ask"),
        (["--responses", "nothing.jsonl"], "is one file and there are 2 candidates"),
        (["--responses", "x", "--engine", "vllm"], "found responses and engine, expected one"),
    ],
)  # fmt: skip
def test_an_engine_that_cant_write(place: Path, capsys, options: list[str], words: str):
    assert words in refused(capsys, *COMMANDS["rank"], *options)


def test_benchmarks_that_cannot_be_used(place: Path, capsys):
    (place / "x.csv").write_text("a,0.5\nb,0.5\n")
    (place / "y.csv").write_text("a,0.5\n")
    for truth, words in (
        ("x=x.csv,y=y.csv", "--truth y=y.csv lacks 1 of the 2 ranked candidates, first b"),
        ("x=x.csv,x=y.csv", "found benchmark x twice"),
        ("x=x.csv,y=none.csv", "none.csv is no file"),
        ("x=x.csv,y=a", "is no result of lm-eval"),
    ):
        assert words in refused(capsys, *COMMANDS["rank"], "--truth", truth)


def test_a_summary_of_what_is_no_ranking(place: Path, capsys):
    assert "ranking.json" in refused(capsys, "summary", "a", "--out", "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", "1.5"], "expected a whole number of at least 1 or a number above 0 and below"),
        (["--row-tokens", "0.5"], "expected a whole number of at least 1 or one of: auto"),
        (["--nex-cache", "cache", "--top-k", "0.1"], "found top_k = 0.1 and nex_cache"),
        (["--known", "2"], "prompts with an answer in"),
        (["--cross-fit", "--weights", "w"], "found cross_fit and weights, expected one of them"),
    ],
)
def test_a_ranking_that_cant_be_recorded_as_asked(place: Path, capsys, options, words: str):
    caches = "--nex-cache" in options
    command = ["rank", "--out", "out"] if caches else COMMANDS["rank"]
    assert words in refused(capsys, *command, *options)


def test_a_reading_of_what_is_no_ranking(place: Path, capsys):
    assert "expected the directory of a finished ranking" in refused(
        capsys, "read", "a", "--out", "out"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trigger label a --out out", "found no questions, expected prompts=FILE, or easy=FILE"),
        ("trigger label a --easy mini.jsonl --out out", "give both files"),
        ("trigger reconstruct a --out out", "expected either labels"),
        ("trigger reconstruct a --corpus mini.jsonl --out out", "mini.jsonl:1: found no reasoning"),
        ("trigger reconstruct a --labels b --source x.jsonl --out out", "x.jsonl does not exist"),
        ("trigger fluctuation a --labels b --channels c --out out", "so it holds no labels"),
        ("trigger calibrate a --prompts mini.jsonl --out out", "carries no monitor"),
        ("trigger calibrate a --prompts mini.jsonl --out out --action choose", "found action"),
        ("monitor a --prompts mini.jsonl --out out", "watch nothing: --levels none"),
        (
            "monitor a --prompts mini.jsonl --out out --action choose --engine http://x",
            "an engine takes nothing back",
        ),
        ("monitor a --prompts mini.jsonl --out out --levels outer", "found the level 'outer'"),
        (
            "monitor a --prompts mini.jsonl --out out --levels none --draws 3",
            "carries no monitor that could act",
        ),
        (
            "trigger detectors a --labels b --channels c --out out --check math",
            "found check and no trials",
        ),
    ],
)
def test_a_trigger_stage_without_what_it_needs(place: Path, capsys, command: str, words: str):
    assert words in refused(capsys, *command.split())
