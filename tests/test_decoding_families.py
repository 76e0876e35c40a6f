"""Families of transformers' registry, made tiny, decoded here and by `generate` (`make families`
walks all of them), and what holds for rows that don't share passes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.families import compare, generated, tiny
from surgeon.decoding import Decoder, Request, Rewind, decode, stream_key
from surgeon.decoding.alone import Alone
from surgeon.decoding.fitting import why_alone
from surgeon.errors import BadInput

SHARED = (
    "cohere2", "deepseek_v3", "exaone4", "gemma2", "gemma3", "gemma3_text", "gemma3n_text",
    "gemma4_text", "gpt_oss", "granite", "llama4_text", "ministral", "olmo3", "qwen2_5_vl",
    "qwen3_vl", "qwen3_vl_moe", "smollm3", "starcoder2",
)  # fmt: skip
"""Rows share passes."""
ALONE = (
    "bloom", "falcon_h1", "lfm2", "mamba2", "paligemma", "qwen3_5_text", "qwen3_next",
    "recurrent_gemma",
)  # fmt: skip
"""A row a pass."""


@pytest.mark.parametrize("model_type", SHARED)
def test_rows_that_share_passes_answer_as_generate_does(model_type: str):
    result = compare(tiny(model_type))
    assert (result.outcome, result.path) == ("equal", "shared"), result.note


@pytest.mark.parametrize("model_type", ALONE)
def test_rows_that_share_no_passes_answer_as_generate_does(
    model_type: str, capsys: pytest.CaptureFixture[str]
):
    model = tiny(model_type)
    result = compare(model)
    assert (result.outcome, result.path) == ("equal", "alone"), result.note
    compare(model)
    assert capsys.readouterr().err.count("one row a pass") <= 1
    assert why_alone(model)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("janus", "a procedure of its own"), ("t5gemma2", "an encoder of its own")],
)
def test_what_generate_does_otherwise_is_refused_by_name(model_type: str, reason: str):
    with torch.device("meta"):
        model = tiny(model_type)
    with pytest.raises(BadInput, match=f"{model_type}.*{reason}"):
        Decoder(model, stop=frozenset(), rows=1, max_tokens=1)


# --- rows that share no passes --------------------------------------------------------------------


@pytest.fixture(scope="module")
def lonely() -> Any:
    """Linear attention: a state that `Slots` doesn't hold."""
    return tiny("qwen3_next")


def requests(lengths: Sequence[int]) -> list[Request]:
    drawn = torch.Generator().manual_seed(1)
    return [
        Request(torch.randint(6, 128, (n,), generator=drawn).tolist(), stream_key(0, str(i), 0))
        for i, n in enumerate(lengths)
    ]


def answers(model: Any, wanted: list[Request], **settings: Any) -> list[list[int]]:
    settings = dict(stop=frozenset(), max_tokens=12) | settings
    found = sorted(decode(model, wanted, **settings), key=lambda answer: answer.index)
    return [answer.token_ids for answer in found]


def test_drawn_answers_depend_on_no_neighbour_and_on_no_number_of_rows(lonely: Any):
    wanted = requests([5, 30, 1, 12])
    whole = answers(lonely, wanted, batch=4)
    assert answers(lonely, wanted, batch=1) == whole
    assert answers(lonely, wanted[::-1], batch=3) == whole[::-1]
    assert len({tuple(ids) for ids in whole}) == 4


def test_a_request_that_is_cancelled_leaves_the_others_alone(lonely: Any):
    wanted = requests([5, 30, 1, 12])
    whole = answers(lonely, wanted)
    decoder = Decoder(lonely, stop=frozenset(), rows=2, max_tokens=12)
    assert isinstance(decoder.passes, Alone)
    for index, request in enumerate(wanted):
        decoder.add(index, request)
    found: dict[int, list[int]] = {index: [] for index in range(4)}
    for step in range(100):
        if step == 3:
            decoder.cancel(0)
            assert list(decoder.passes.row_by_slot) == [1]
        for token in decoder.step():
            found[token.index].append(token.token_id)
    assert not decoder.busy and not decoder.passes.row_by_slot
    assert found[0] == whole[0][:3]
    assert [found[i] for i in (1, 2, 3)] == whole[1:]


def test_rows_that_are_given_up_for_memory_come_back_with_the_same_answer(
    lonely: Any, monkeypatch: pytest.MonkeyPatch
):
    wanted = requests([5, 3, 1, 60])
    whole = answers(lonely, wanted)
    token_bytes = Alone(lonely, splits=False).token_bytes
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: 200 * token_bytes)
    decoder = Decoder(lonely, stop=frozenset(), rows=4, max_tokens=12)
    found: dict[int, list[int]] = {index: [] for index in range(4)}
    for index in (0, 1, 2, 3):
        decoder.add(index, wanted[index])
        for token in [*decoder.step(), *decoder.step()]:
            found[token.index].append(token.token_id)
    # Four rows of 80 positions are too many: the youngest were given up.
    assert len(decoder.row_B) == 2 and len(decoder.passes.row_by_slot) == 2  # pyright: ignore
    while decoder.busy:
        for token in decoder.step():
            found[token.index].append(token.token_id)
    assert list(found.values()) == whole


class Forcing:
    """Forces a token at a position, and keeps the input of a layer's FFN in every pass."""

    def __init__(self, model: Any):
        self.layer, self.seen, self.fed = model.model.layers[1].mlp, [], []
        self.index, self.last = -1, torch.zeros(0)

    def attached(self) -> Any:
        from contextlib import ExitStack

        stack = ExitStack()
        hook = self.layer.register_forward_pre_hook(self._keep)
        stack.callback(hook.remove)
        return stack

    def _keep(self, _: Any, args: tuple[torch.Tensor, ...]) -> None:
        self.last = args[0]

    def seat(self, slot: int, index: int) -> None:
        assert slot == 0
        self.index, self.fed = index, []

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        raise AssertionError("there is one row")

    def look(
        self, slots: Sequence[int], fed_B: torch.Tensor, chosen_B: torch.Tensor
    ) -> dict[int, list[int]]:
        assert list(slots) == [0] and self.last.shape[:2] == (1, 1) and len(chosen_B) == 1
        self.fed.append(int(fed_B[0]))
        self.seen.append((self.index, int(fed_B[0])))
        return {0: [9, 10]} if self.index == 1 and len(self.fed) == 4 else {}


def test_a_watcher_sees_each_token_and_forces_some(lonely: Any):
    wanted = requests([5, 30, 1])
    plain = answers(lonely, wanted)
    watcher: Any = Forcing(lonely)
    watched = answers(lonely, wanted, watcher=watcher)
    assert watched[0] == plain[0] and watched[2] == plain[2]
    assert watched[1][:5] == [*plain[1][:3], 9, 10]
    for index, ids in enumerate(watched):
        fed = [token for i, token in watcher.seen if i == index]
        assert fed == [wanted[index].prompt[-1], *ids[:-1]]


class GoingBack(Forcing):
    """Sends every answer back from its seventh token to its third: the first time to what was drawn
    there, the second time to draw it anew."""

    def seat(self, slot: int, index: int) -> None:
        self.sent = 0
        self.fed = []

    def settled(self, slot: int) -> int:
        return 0 if self.sent < 2 else 99

    def look(self, slots: Sequence[int], fed_B: torch.Tensor, chosen_B: torch.Tensor) -> Any:
        self.fed.append(int(fed_B[0]))
        if len(self.fed) < 7 or self.sent == 2:
            return {}
        again = [] if self.sent else self.fed[3:]
        self.sent += 1
        del self.fed[2:]
        return {0: Rewind(2, self.sent, again)}


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3"])
def test_an_answer_that_goes_back_goes_on_from_there(model_type: str):
    """Greedy: to the same answer; drawn: to the same beginning, and to nothing that was emitted."""
    model, wanted = tiny(model_type), requests([5, 30])
    greedy = [request._replace(temperature=0.0) for request in wanted]
    watcher: Any = GoingBack(model)
    assert answers(model, greedy, batch=1, watcher=watcher) == answers(model, greedy, batch=1)
    plain = answers(model, wanted, batch=1)
    drawn = answers(model, wanted, batch=1, watcher=watcher)
    for ids, others in zip(drawn, plain, strict=True):
        assert ids[:2] == others[:2] and ids != others and len(ids) == len(others)


# --- settings of configs that are easily overlooked -----------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen2", dict(use_sliding_window=False, layer_types=None)),
        ("qwen3", dict(use_sliding_window=True, layer_types=None, max_window_layers=1)),
        ("mistral", dict(sliding_window=None)),
        ("gemma3_text", dict(layer_types=None, sliding_window=8)),
        ("llama4_text", dict(attention_chunk_size=11)),
        ("phi3", dict(partial_rotary_factor=0.5)),
        ("cohere2", dict(num_hidden_layers=4, layer_types=None)),
        ("falcon", dict(alibi=True)),
    ],
)
def test_what_a_config_says_of_windows_and_positions_is_followed(
    model_type: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    from benchmarks import families

    hints = families.HINTS.get(model_type, {})
    monkeypatch.setitem(families.HINTS, model_type, hints | settings)
    model = tiny(model_type)
    for name, value in settings.items():
        assert value is None or getattr(model.config, name) == value
    result = compare(model)
    assert result.outcome == "equal", result.note


def test_weights_that_are_no_numbers_say_nothing_of_the_family():
    model = tiny("qwen3")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert why_alone(model) is None


def test_a_config_of_which_transformers_makes_no_model_is_unsupported():
    from transformers import CONFIG_MAPPING

    from surgeon.live.support import support

    assert "no attribute 'num_hidden_layers'" in str(support(CONFIG_MAPPING["blt"]()).decode)


def test_bfloat16_shares_passes_and_follows_the_window():
    model = tiny("olmo3").bfloat16()
    assert why_alone(model) is None
    (request,) = requests([40])
    (ours,) = answers(model, [request], temperature=0, max_tokens=8)
    theirs = generated(model, list(request.prompt))
    n = 0
    while n < 8 and ours[n] == theirs.ids[n]:
        n += 1
    # Sums in bfloat16 come in another order: the first other token must be about as likely.
    if n < 8:
        logits_V = theirs.logits_TV[n]
        assert logits_V.max() - logits_V[ours[n]] < 0.1 * logits_V.std()


def test_an_adapter_in_training_shares_passes():
    """With dropout, which is off while it decodes."""
    import peft

    base = tiny("qwen3")
    adapter = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    model: Any = peft.get_peft_model(base, adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.1)
    (request,) = requests([20])
    theirs = generated(model.eval(), list(request.prompt))
    model.train()
    assert why_alone(model) is None
    assert answers(model, [request], temperature=0) == [theirs.ids[:12]]
    assert model.training
