"""Opening, digesting, loading and rewriting checkpoints; what is refused, and in which words."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgeon.checkpoint import (
    DTYPES,
    INDEX,
    Checkpoint,
    card,
    fenced,
    hub_id,
    label_dtype,
    markdown_table,
    read_header,
    resolve,
    rewrite,
    split_member,
    stored_dtype,
    torch_dtype,
)
from surgeon.errors import BadInput

FAMILIES = [
    "qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "phi3", "glm4",
    "qwen3_moe", "mixtral", "qwen3_vl",
]  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_supported_family_opens_and_loads(tmp_path: Path, make_checkpoint, model_type: str):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", model_type))
    assert checkpoint.model_type == model_type and checkpoint.n_layers == 3
    model = checkpoint.model()
    logits = model(torch.tensor([[5, 6, 7]])).logits  # pyright: ignore
    assert logits.shape == (1, 3, 128) and torch.isfinite(logits).all()
    assert not model.training and logits.dtype == torch.bfloat16


def test_headers_agree_with_the_tensors_they_describe(pico_pair):
    checkpoint = Checkpoint.open(pico_pair[0])
    assert len(checkpoint.shards) > 1 and checkpoint.tied
    total = 0
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.tensor(name)
        assert tuple(tensor.shape) == info.shape and tensor.nbytes == info.nbytes
        total += tensor.nbytes
    assert checkpoint.size == total


def test_digest_follows_one_flipped_weight_bit_and_nothing_beside_it(pico_pair):
    a, _ = pico_pair
    before = Checkpoint.open(a).digest
    (a / "README.md").write_text("a model card is not the model")
    assert Checkpoint.open(a).digest == before
    shard = a / next(iter(Checkpoint.open(a).shards))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert Checkpoint.open(a).digest != before


def test_digest_follows_the_chat_template(pico_pair):
    a, _ = pico_pair
    before = Checkpoint.open(a).digest
    (a / "chat_template.jinja").write_text("another")
    assert Checkpoint.open(a).digest != before


def test_rewrite_changes_what_it_is_told_and_links_the_rest(pico_pair, tmp_path: Path):
    source = Checkpoint.open(pico_pair[0])
    target = "model.layers.1.mlp.up_proj.weight"
    (tmp_path / "out").mkdir()
    rewrite(source, tmp_path / "out", lambda _, t: t + 1, lambda name: name == target)
    copy = Checkpoint.open(tmp_path / "out")
    for name in source.tensors:
        same = torch.equal(source.tensor(name), copy.tensor(name))
        assert same == (name != target), name
    for shard in source.shards:
        linked = (copy.path / shard).samefile(source.path / shard)
        assert linked == (shard != source.tensors[target].shard)
    copy.model()


def test_rewrite_refuses_an_edit_that_changes_the_dtype(pico_pair, tmp_path: Path):
    source = Checkpoint.open(pico_pair[0])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="must keep both"):
        rewrite(source, tmp_path / "out", lambda _, t: t.float(), lambda _: True)


def damage_truncate(path: Path) -> None:
    shard = sorted(path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])


def damage_header(path: Path) -> None:
    shard = sorted(path.glob("*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 200)


def damage_missing_shard(path: Path) -> None:
    sorted(path.glob("*.safetensors"))[0].unlink()


def damage_index_outside(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../secret.safetensors"
    (path / INDEX).write_text(json.dumps(index))


def damage_index_lies(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["ghost"] = sorted(path.glob("*.safetensors"))[0].name
    (path / INDEX).write_text(json.dumps(index))


def damage_no_config(path: Path) -> None:
    (path / "config.json").unlink()


def damage_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def damage_remote_code(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "homegrown", "auto_map": {"AutoModel": "modeling.Homegrown"}}
    (path / "config.json").write_text(json.dumps(config))


def damage_pickle(path: Path) -> None:
    for file in [*path.glob("*.safetensors"), path / INDEX]:
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04")


def damage_no_weights(path: Path) -> None:
    for file in [*path.glob("*.safetensors"), path / INDEX]:
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "truncated or corrupt"),
        (damage_header, "header is unreadable"),
        (damage_missing_shard, "lacks 1 of its"),
        (damage_index_outside, "outside the directory"),
        (damage_index_lies, "does not hold it"),
        (damage_no_config, "has no config.json"),
        (damage_config, "can't be read as JSON"),
        (damage_remote_code, "trust_remote_code"),
        (damage_pickle, "pickled weights only"),
        (damage_no_weights, "has no weights"),
    ],
)
def test_damage_is_named_in_one_line(pico_pair, damage, words: str):
    damage(pico_pair[0])
    with pytest.raises(BadInput, match=words) as caught:
        Checkpoint.open(pico_pair[0])
    assert "\n" not in str(caught.value) and str(pico_pair[0]) in str(caught.value)


def test_weights_of_another_shape_than_the_config_says_are_refused(pico_pair):
    config = json.loads((pico_pair[0] / "config.json").read_text())
    wider = config | {"intermediate_size": 64}
    (pico_pair[0] / "config.json").write_text(json.dumps(wider))
    with pytest.raises(BadInput, match=r"lacks .* weights of a qwen3 model"):
        Checkpoint.open(pico_pair[0]).model()


def test_a_config_that_contradicts_itself_is_refused(pico_pair):
    config = json.loads((pico_pair[0] / "config.json").read_text())
    (pico_pair[0] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(BadInput, match=r"config.json is refused: .*layer_types"):
        Checkpoint.open(pico_pair[0]).model()


def test_resolve_names_what_it_could_not_find(tmp_path: Path):
    with pytest.raises(BadInput, match="no such directory, and not a hub id"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="could not be fetched from the hub"):
        resolve("no-such-owner/no-such-model@main")


def test_base_plus_adapter_is_the_merged_model(pico_pair, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = Checkpoint.open(pico_pair[0])
    torch.manual_seed(0)
    tuned = get_peft_model(base.model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))  # pyright: ignore
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    merged = resolve(f"{pico_pair[0]}+{tmp_path / 'adapter'}", work=tmp_path / "work")
    reference = PeftModel.from_pretrained(
        base.model(dtype=torch.float32),  # pyright: ignore
        str(tmp_path / "adapter"),
    ).merge_and_unload()  # pyright: ignore
    changed = 0
    for name, parameter in reference.named_parameters():
        assert torch.equal(merged.tensor(name), parameter.to(torch.bfloat16)), name
        changed += not torch.equal(merged.tensor(name), base.tensor(name))
    assert changed == 6 and merged.tensors[next(iter(merged.tensors))].dtype == "BF16"
    assert merged.chat_template == base.chat_template


def test_an_adapters_own_tokenizer_takes_the_place_of_the_bases(pico_pair, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    base = Checkpoint.open(pico_pair[0])
    tuned = get_peft_model(base.model(), LoraConfig(r=2, target_modules=["q_proj"]))  # pyright: ignore
    tuned.save_pretrained(str(tmp_path / "adapter"))
    spec = f"{pico_pair[0]}+{tmp_path / 'adapter'}"
    digest = resolve(spec, work=tmp_path / "one").digest
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        (tmp_path / "adapter" / name).write_text(name)
    merged = resolve(spec, work=tmp_path / "two")
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        assert (merged.path / name).read_text() == name
    # A file of the base's tokenizer beside them would be read instead.
    assert not (merged.path / "tokenizer.json").exists()
    assert (merged.path / "chat_template.jinja").is_file() and merged.digest != digest


def test_an_adapter_alone_asks_for_its_base(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="Name its base too"):
        resolve(str(tmp_path))


def test_an_adapter_of_another_base_is_refused(pico_pair, tmp_path: Path, make_checkpoint):
    from peft import LoraConfig, get_peft_model

    wide = Checkpoint.open(make_checkpoint(tmp_path / "wide", hidden_size=64))
    tuned = get_peft_model(wide.model(), LoraConfig(r=2, target_modules=["q_proj"]))  # pyright: ignore
    tuned.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(BadInput, match="another base"):
        resolve(f"{pico_pair[0]}+{tmp_path / 'adapter'}", work=tmp_path / "work")


@given(st.binary(max_size=400))
def test_no_bytes_make_the_header_reader_crash(tmp_path_factory, data: bytes):
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(BadInput):
        read_header(file)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4),
        max_size=3,
    )
)
def test_any_json_header_is_read_or_refused(tmp_path_factory, header: dict):
    text = json.dumps(header).encode()
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    if header:
        with pytest.raises(BadInput):
            read_header(file)
    else:
        assert read_header(file) == {}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("owner/name", "owner/name"),
        ("owner/name@v1.0/x", "owner/name"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("../name", None),
        ("./name", None),
        ("a/b/c", None),
        ("name", None),
        ("builtin:instruct", None),
        ("owner/name+adapter", None),
        ("owner/name#member", None),
    ],
)
def test_a_hub_id_is_owner_and_name_and_no_path(spec: str, expected: str | None):
    assert hub_id(spec) == expected
    assert Checkpoint(Path("/somewhere"), spec).hub_id == expected


def test_a_directory_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/name") is None and hub_id("owner/other") == "owner/other"


def test_a_member_is_split_from_its_place_unless_the_path_exists(tmp_path: Path):
    assert split_member("f/family.json#slerp-0.5") == ("f/family.json", "slerp-0.5")
    assert split_member("f/family.json") == ("f/family.json", "")
    assert split_member("f#g#slerp-0.5") == ("f#g", "slerp-0.5")
    (tmp_path / "odd#name").mkdir()
    assert split_member(tmp_path / "odd#name") == (str(tmp_path / "odd#name"), "")


def test_the_context_ends_where_rescaling_would_begin(tmp_path: Path, make_checkpoint):
    plain = Checkpoint.open(make_checkpoint(tmp_path / "m"))
    assert plain.context == 2048
    for kind, expected in (("longrope", 64), ("yarn", 2048)):
        rope = dict(
            rope_type=kind, rope_theta=10000.0, factor=32.0, short_factor=[1.0] * 4,
            long_factor=[2.0] * 4, original_max_position_embeddings=64,
        )  # fmt: skip
        config = {k: v for k, v in plain.config.items() if k not in ("rope_scaling",)}
        config["rope_parameters"] = rope
        (plain.path / "config.json").write_text(json.dumps(config))
        assert Checkpoint.open(plain.path).context == expected


def test_the_context_of_a_config_that_leaves_it_out_is_transformers_default(pico_pair):
    config = json.loads((pico_pair[0] / "config.json").read_text())
    del config["max_position_embeddings"]
    (pico_pair[0] / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(pico_pair[0]).context == 32768  # Qwen3Config's own


def test_every_dtype_has_its_width_in_torch():
    for name, dtype in DTYPES.items():
        assert torch_dtype(name).itemsize == dtype.nbytes
        assert torch_dtype(dtype.torch) == torch_dtype(name)
        assert dtype.arithmetic == (torch_dtype(name).is_floating_point and dtype.nbytes > 1)


def test_a_card_names_parents_on_the_hub_and_leaves_empty_sections_out(pico_pair):
    local = Checkpoint.open(pico_pair[0])
    far = Checkpoint(Path("/cache/x"), "owner/name@main")
    rows = [("a", 1), ("b", 2)]
    text = card(
        "title", ["first", "", markdown_table(("x", "y"), rows), fenced("code\n", "yaml")],
        parents=[local, far], tags=["surgeon"],
    )  # fmt: skip
    assert text == (
        "---\nlibrary_name: transformers\nbase_model:\n- owner/name\ntags:\n- surgeon\n---\n"
        "# title\n\nfirst\n\n| x | y |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n\n"
        "```yaml\ncode\n```\n"
    )
    assert "base_model" not in card("title", [], parents=[local])


# --- what is read, and how what is written is labelled -------------------------------------------


def relabel(path: Path, dtype: str) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": dtype}))


def test_the_automatic_dtype_is_that_of_the_weights(pico_pair, capsys):
    relabel(pico_pair[0], "float32")
    checkpoint = resolve(str(pico_pair[0]))
    assert stored_dtype(checkpoint) == "BF16"
    assert next(checkpoint.model().parameters()).dtype == torch.bfloat16
    assert "config.json says float32, the weights are bfloat16" in capsys.readouterr().err


def test_a_copy_with_a_wrong_label_gets_the_right_one(pico_pair, tmp_path: Path):
    relabel(pico_pair[0], "float32")
    (tmp_path / "out").mkdir()
    rewrite(Checkpoint.open(pico_pair[0]), tmp_path / "out", lambda _, t: t, lambda _: False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_right_label_is_left_alone(pico_pair):
    before = (pico_pair[0] / "config.json").read_bytes()
    label_dtype(pico_pair[0])
    assert (pico_pair[0] / "config.json").read_bytes() == before


def test_a_config_without_architectures_loads_as_its_model_type(pico_pair):
    config = json.loads((pico_pair[0] / "config.json").read_text())
    del config["architectures"]
    (pico_pair[0] / "config.json").write_text(json.dumps(config))
    assert type(resolve(str(pico_pair[0])).model()).__name__ == "Qwen3ForCausalLM"


def test_a_tensor_that_the_index_leaves_out_is_read_as_transformers_does(pico_pair):
    index = json.loads((pico_pair[0] / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (pico_pair[0] / INDEX).write_text(json.dumps(index))
    assert "model.norm.weight" in resolve(str(pico_pair[0])).tensors


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.summary.weight", "steps",
     "model.layers.1.attn.masked_bias"],
)  # fmt: skip
def test_what_older_versions_and_trainers_leave_behind_is_left_out(pico_pair, capsys, name: str):
    shard = sorted(pico_pair[0].glob("*.safetensors"))[0]
    tensors = load_file(shard)
    kind = torch.int64 if name == "steps" else torch.float32
    save_file(tensors | {name: torch.ones(4, dtype=kind)}, shard, metadata={"format": "pt"})
    resolve(str(pico_pair[0])).model()
    said = capsys.readouterr().err
    assert ("left out, as transformers does" in said) == ("inv_freq" not in name)


def test_a_tied_head_that_is_stored_too_is_dropped_and_one_that_differs_is_not(pico_pair):
    shard = sorted(pico_pair[0].glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    embedding = Checkpoint.open(pico_pair[0]).tensor("model.embed_tokens.weight")
    save_file(tensors | {"lm_head.weight": embedding}, shard, metadata={"format": "pt"})
    checkpoint = resolve(str(pico_pair[0]))
    assert checkpoint.tied and "lm_head.weight" not in checkpoint.tensors
    save_file(tensors | {"lm_head.weight": embedding + 1}, shard, metadata={"format": "pt"})
    checkpoint = resolve(str(pico_pair[0]))
    assert not checkpoint.tied and "lm_head.weight" in checkpoint.tensors
    model = checkpoint.model()
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)  # pyright: ignore
