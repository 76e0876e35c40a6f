"""Trigger SFT's parts: examples as tokens, masks, the losses of their parts, the triggers' rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trigger_labels import MODEL, TRIGGERS, make_labels, write_examples

from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.settings.training import Tuning
from surgeon.traces import Prompt, encode
from surgeon.training.tuning import trainable, tune
from surgeon.trigger.examples import (
    Example,
    Segment,
    encode_example,
    loss_by_kind,
    micro_batches,
    read_examples,
)
from surgeon.trigger.reconstruct import reconstruct
from surgeon.trigger.sft import sft
from surgeon.trigger.tokens import add_triggers, prepare_rows


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """Checkpoints `tied` and `untied` with 8 reserved rows, `full` without, and examples; read
    only."""
    root = tmp_path_factory.mktemp("rows")
    for name, tied, size in (("tied", True, 136), ("untied", False, 136), ("full", True, 128)):
        make_checkpoint(root / name, tied=tied, vocab_size=size)
    write_examples(root / "examples.jsonl")
    return root


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Examples of the built-in task."""
    root = tmp_path_factory.mktemp("examples")
    reconstruct(MODEL, labels=make_labels(root), out=root / "examples")
    return read_examples(root / "examples")


# --- examples as tokens


def test_prompt_and_trigger_are_masked_and_nothing_else(examples: list[Example]):
    """Eq. 6-7; R11: `mask_wrong` leaves the failing step out too."""
    tokenizer: Any = resolve(MODEL).tokenizer()
    new = add_triggers(tokenizer, TRIGGERS)
    for example in examples:
        asked = encode(tokenizer, example.prompt)
        one = encode_example(tokenizer, example, mask_wrong=False)
        assert one.ids[: len(asked)] == asked and one.ids[-1] == tokenizer.eos_token_id
        text = "".join(part.text for part in example.segments)
        assert tokenizer.decode(one.ids[len(asked) : -1]) == text
        masked = [i for i, learned in enumerate(one.learned) if not learned]
        (at,) = [i for i, token in enumerate(one.ids) if token in new]
        assert masked == [*range(len(asked)), at]
        kinds = {kind: [i for i, k in enumerate(one.kinds) if k == kind] for kind in one.kinds}
        assert kinds[""] == [*range(len(asked))] and kinds["trigger"] == [at]
        wrong = next(part.text for part in example.segments if part.kind == "wrong")
        assert tokenizer.decode([one.ids[i] for i in kinds["wrong"]]) == wrong
        other = encode_example(tokenizer, example, mask_wrong=True)
        also = [i for i, learned in enumerate(other.learned) if not learned]
        assert other.ids == one.ids and also == sorted({*masked, *kinds["wrong"]})


def test_a_token_over_a_border_is_learned_where_both_sides_are():
    """`Let me start over.` is one token of the built-in tokenizer."""
    tokenizer: Any = resolve(MODEL).tokenizer()
    prompt = Prompt("1", ({"role": "user", "content": "Start 3."},), None, True)
    for learned in ((True, True), (True, False), (False, True)):
        parts = [
            ("prefix", "Let me st", learned[0]),
            ("continuation", "art over. Start", learned[1]),
        ]
        example = Example("1", prompt, tuple(Segment(*part) for part in parts))
        one = encode_example(tokenizer, example, mask_wrong=False)
        n = len(encode(tokenizer, prompt))
        assert len(one.ids) > n + 2
        assert one.learned[n] == all(learned)
        assert one.learned[n + 1] == learned[1]


def test_loss_by_kind_is_the_mean_over_its_tokens(pico: Path):
    tokenizer: Any = Checkpoint.open(pico / "tied").tokenizer()
    add_triggers(tokenizer, TRIGGERS)
    examples = [encode_example(tokenizer, e, mask_wrong=False)
                for e in read_examples(pico / "examples.jsonl")[:3]]  # fmt: skip
    model: Any = Checkpoint.open(pico / "tied").model(dtype=torch.float32)
    sums: dict[str, list[float]] = {}
    for example in examples:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([example.ids])).logits[0]
        logp_TV = logits_TV.log_softmax(-1)
        for t, kind in enumerate(example.kinds[1:]):
            if kind:
                sums.setdefault(kind, []).append(-float(logp_TV[t, example.ids[t + 1]]))
    found = loss_by_kind(model, examples, 100)  # padded beside each other
    assert found.keys() == {"prefix", "wrong", "trigger", "diagnose", "continuation"}
    for kind, values in sums.items():
        assert found[kind] == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_micro_batches_hold_every_learned_token_once(examples: list[Example]):
    tokenizer: Any = resolve(MODEL).tokenizer()
    add_triggers(tokenizer, TRIGGERS)
    encoded = [encode_example(tokenizer, e, mask_wrong=True) for e in examples[:5]]
    tokens, most = [], 2 * max(len(e.ids) for e in encoded)
    for micro in micro_batches(encoded, most):
        ids_BT, at_P, _ = micro.sequences
        assert ids_BT.numel() <= most
        # The state before a learned token predicts it.
        assert ids_BT.flatten()[at_P + 1].tolist() == micro.token_P.tolist()
        tokens += micro.token_P.tolist()
    pairs = [pair for e in encoded for pair in zip(e.ids, e.learned, strict=True)]
    assert sorted(tokens) == sorted(token for token, learned in pairs if learned)


@pytest.mark.parametrize(
    "row, said",
    [
        ("nonsense", "examples.jsonl:1: found no valid JSON"),
        ("[]", "examples.jsonl:1: found no example"),
        ('{"messages": [{"role": "user", "content": "w1"}], "segments": [{"kind": "odd"}]}',
         "found the segment .*odd.*, expected kind"),
        ('{"segments": []}', "examples.jsonl:1: found"),
        ('{"messages": [{"role": "user", "content": "w1"}], "segments": '
         '[{"kind": "prefix", "text": "w2"}]}', "has the trigger None, expected one of <INTRA>"),
        ("", "holds no examples"),
    ],
)  # fmt: skip
def test_examples_that_are_none_are_refused(pico: Path, tmp_path: Path, monkeypatch, row, said):
    monkeypatch.setattr(Checkpoint, "model", None)
    (tmp_path / "examples.jsonl").write_text(row + "\n")
    with pytest.raises(BadInput, match=said) as caught:
        sft(str(pico / "tied"), examples=tmp_path, out=tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


# --- the triggers' rows


@pytest.mark.parametrize("name", ["tied", "untied", "full"])
def test_new_rows_are_the_mean_of_the_known_ones(pico: Path, name: str):
    checkpoint = Checkpoint.open(pico / name)
    tokenizer = checkpoint.tokenizer()
    new = add_triggers(tokenizer, TRIGGERS)
    assert new == [128, 129]
    model: Any = checkpoint.model()
    before = [
        m.weight.clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    assert prepare_rows(model, new) == (name == "full")
    assert model.config.vocab_size == (130 if name == "full" else 136)
    after = [m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    for old_VD, new_VD in zip(before, after, strict=True):
        rows = [i for i in range(len(old_VD)) if i not in new]
        assert torch.equal(old_VD[rows], new_VD[rows])
        mean_D = old_VD[:128].float().mean(0).to(torch.bfloat16)
        assert torch.equal(new_VD[new], mean_D.expand(2, -1))
    assert (after[0] is after[1]) == (name != "untied")


def test_single_rows_and_the_whole_matrix_are_not_trained_at_once(pico: Path):
    for targets in ("lm_head", "q_proj, embed_tokens"):
        model: Any = Checkpoint.open(pico / "untied").model()
        with pytest.raises(BadInput, match="leave it out of the targets"):
            tune(model, Tuning(targets=targets), rows=[128])
    model = Checkpoint.open(pico / "tied").model()
    tune(model, Tuning(rank=2), rows=[128, 130])
    shapes = {n: tuple(p.shape) for n, p in trainable(model).items() if "lora_" not in n}
    assert list(shapes.values()) == [(2, 32)]
