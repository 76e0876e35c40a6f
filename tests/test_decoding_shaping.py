"""Bias, penalties, constraints and log-probabilities of single rows, against transformers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_decoding_batch import requests, run, shedding
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
)

from surgeon.decoding import Decoder, Request, Shaping, decode, prompt_likelihoods, stream_key
from surgeon.decoding.fitting import why_alone
from surgeon.decoding.shaping import shaped
from surgeon.errors import BadInput

NONE = frozenset[int]()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Any) -> Any:
    from surgeon.checkpoint import Checkpoint

    path = tmp_path_factory.mktemp("shaping") / "m"
    made = Checkpoint.open(make_checkpoint(path, dtype="float32")).model()
    assert why_alone(made) is None
    return made


class Only:
    """Allows the tokens of a set, and notes what it is told."""

    def __init__(self, *ids: int, vocabulary: int = 128):
        self.allowed_V = np.isin(np.arange(vocabulary), ids)
        self.seen: list[int] = []

    def allowed(self) -> np.ndarray:
        return self.allowed_V

    def accept(self, token_id: int) -> None:
        self.seen.append(token_id)


# --- the equations --------------------------------------------------------------------------------


def logits(seed: int = 0, V: int = 50) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float):
    prompt, answer = [1, 2, 3, 3], [7, 7, 9]
    found = shaped(logits(), Shaping(repetition_penalty=penalty), prompt, answer, 1.0)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.tensor([prompt + answer]), logits()[None])[0]  # pyright: ignore
    assert torch.equal(found, expected)


def test_a_bias_is_that_of_transformers():
    bias = {4: 2.5, 7: -100.0}
    found = shaped(logits(), Shaping(bias=tuple(bias.items())), [1], [2], 1.0)
    theirs = SequenceBiasLogitsProcessor([[[i], v] for i, v in bias.items()])
    expected = theirs(torch.tensor([[1, 2]]), logits()[None])[0]  # pyright: ignore
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("min_p", [0.01, 0.2, 1.0])
def test_min_p_keeps_the_tokens_that_transformers_keeps(min_p: float, temperature: float):
    for seed in range(20):
        found = shaped(logits(seed), Shaping(min_p=min_p), [1], [], temperature)
        warm = TemperatureLogitsWarper(temperature)(torch.tensor([[1]]), logits(seed)[None])  # pyright: ignore
        expected = MinPLogitsWarper(min_p)(torch.tensor([[1]]), warm)[0]  # pyright: ignore
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found[found.isfinite()], logits(seed)[found.isfinite()])


def test_frequency_and_presence_count_tokens_of_the_answer_alone():
    """Token 7 stands twice in the answer, 9 once, 1 in the prompt only."""
    found = shaped(
        torch.zeros(10), Shaping(frequency_penalty=0.5, presence_penalty=0.25), [1], [7, 9, 7], 1.0
    )
    assert found.tolist() == [0] * 7 + [-1.25, 0, -0.75]


def test_penalties_come_after_the_bias():
    """(2 + 1) / 1.5 - 0.5 = 1.5, where the other order gives 1.83."""
    shaping = Shaping(bias=((0, 1.0),), repetition_penalty=1.5, presence_penalty=0.5)
    assert shaped(torch.tensor([2.0, 1.0]), shaping, [], [0], 1.0)[0] == 1.5


# --- in the batch ---------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    dict(shaping=Shaping(bias=((9, 30.0),), frequency_penalty=1.0)),
    dict(shaping=Shaping(repetition_penalty=1.8)),
    dict(shaping=Shaping(presence_penalty=2.0, min_p=0.3)),
    dict(likelihoods=5),
]


def test_the_bits_of_the_other_rows_do_not_change(model: Any):
    """Answers, and what is told of the tokens, with and without mates whose logits are shaped."""
    wanted = [request._replace(likelihoods=3) for request in requests(19)]

    def told(mates: list[Request]) -> dict[int, list[Any]]:
        decoder = Decoder(model, stop=NONE, rows=19, max_tokens=25)
        for i, request in enumerate(mates):
            decoder.add(i, request)
        found: dict[int, list[Any]] = {i: [] for i in range(len(mates))}
        while decoder.busy:
            for token in decoder.step():
                found[token.index].append((token.token_id, token.likelihood))
        return found

    mixed = [
        request if i % 3 else request._replace(**KINDS[i // 3 % 4], constraint=Only(*range(40, 90)))
        for i, request in enumerate(wanted)
    ]
    plain, found = told(wanted), told(mixed)
    for i in range(19):
        assert (found[i] == plain[i]) == bool(i % 3)


def test_greedy_answers_with_a_penalty_are_those_of_generate(model: Any):
    for request in requests(4, seed=3):
        shaping = Shaping(repetition_penalty=1.4, bias=((11, 1.5),))
        wanted = request._replace(temperature=0.0, shaping=shaping)
        (found,) = run(model, [wanted], stop=NONE, max_tokens=20)
        ids = torch.tensor([list(request.prompt)])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
            repetition_penalty=1.4, sequence_bias={(11,): 1.5}, eos_token_id=-1, pad_token_id=0,
        )  # fmt: skip
        assert found.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_likelihoods_are_of_the_model_itself(model: Any):
    """Whatever shapes the draw; against one pass over prompt and answer."""
    (request,) = requests(1, seed=5)
    wanted = request._replace(
        likelihoods=4, temperature=1.7, shaping=Shaping(bias=((3, 50.0),), presence_penalty=60.0)
    )
    decoder = Decoder(model, stop=NONE, rows=2, max_tokens=6)
    decoder.add(0, wanted)
    tokens = [token for _ in range(6) for token in decoder.step()]
    whole = [*request.prompt, *(token.token_id for token in tokens)]
    with torch.inference_mode():
        logprob_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    for i, token in enumerate(tokens, len(request.prompt)):
        likelihood = token.likelihood
        assert likelihood is not None
        assert likelihood.logprob == pytest.approx(float(logprob_TV[i - 1, whole[i]]), abs=1e-4)
        values, ids = logprob_TV[i - 1].topk(4)
        assert [token_id for token_id, _ in likelihood.top] == ids.tolist()
        assert [v for _, v in likelihood.top] == pytest.approx(values.tolist(), abs=1e-4)
    read = prompt_likelihoods(model, whole, 2)
    expected = [float(logprob_TV[i, whole[i + 1]]) for i in range(len(whole) - 1)]
    assert [one.logprob for one in read] == pytest.approx(expected, abs=1e-4)
    assert prompt_likelihoods(model, [5], 2) == []


def test_a_constraint_is_asked_before_and_told_after_each_token(model: Any):
    only = Only(20, 21, 22, 2)
    (request,) = requests(1)
    wanted = request._replace(constraint=only, temperature=1.5)
    (answer,) = decode(model, [wanted], stop=frozenset({2}), max_tokens=30)
    assert set(answer.token_ids) <= {20, 21, 22, 2}
    # The stop token ends the answer: nothing is to come after it.
    assert only.seen == answer.token_ids[: len(only.seen)]
    assert len(answer.token_ids) - len(only.seen) <= 1


def test_an_answer_made_again_for_want_of_memory_is_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    def wanted() -> list[Request]:
        shaping = Shaping(frequency_penalty=0.7, repetition_penalty=1.2)
        return [
            r._replace(shaping=shaping, likelihoods=1, constraint=Only(*range(30, 100)))
            for r in requests(24)
        ]

    calm = run(model, wanted(), stop=NONE, max_tokens=150, batch=32)
    shedding(model, monkeypatch)
    decoder = Decoder(model, stop=NONE, rows=32, max_tokens=150)
    again = wanted()
    for i, request in enumerate(again):
        decoder.add(i, request)
    found: dict[int, list[int]] = {i: [] for i in range(24)}
    fewest = 32
    while decoder.busy:
        for token in decoder.step():
            assert token.likelihood is not None
            found[token.index].append(token.token_id)
        fewest = min(fewest, decoder.most)
    assert fewest < 32
    for i, answer in enumerate(calm):
        assert found[i] == answer.token_ids
        assert isinstance(only := again[i].constraint, Only)
        assert only.seen == answer.token_ids[:-1]


@pytest.mark.parametrize(
    ("shaping", "words"),
    [
        (Shaping(bias=((128, 1.0),)), "token 128"),
        (Shaping(bias=((-1, 1.0),)), "token -1"),
        (Shaping(bias=((0, float("nan")),)), "bias of nan"),
        (Shaping(repetition_penalty=0.0), "repetition_penalty = 0"),
        (Shaping(frequency_penalty=float("inf")), "frequency_penalty = inf"),
        (Shaping(presence_penalty=float("nan")), "presence_penalty = nan"),
        (Shaping(min_p=1.5), "min_p = 1.5"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(model: Any, shaping: Shaping, words: str):
    decoder = Decoder(model, stop=NONE, rows=1, max_tokens=4)
    with pytest.raises(BadInput, match=words):
        decoder.add(0, Request([1], stream_key(0, "a", 0), shaping=shaping))
    assert not decoder.busy


def test_a_vocabulary_of_which_little_is_left_is_drawn_from(tmp_path: Path):
    """Where most is masked, in a vocabulary that isn't sorted outright."""
    from surgeon.decoding.choosing import choose

    row = torch.full((1, 5000), -torch.inf)
    row[0, [7, 4000]] = torch.tensor([0.0, 1.0])
    for u, token in ((0.0, 4000), (0.7, 4000), (0.74, 7), (0.9999999999, 7)):
        number = torch.tensor([u], dtype=torch.float64)
        for top_p, top_k in ((1.0, 0), (0.9999, 0), (1.0, 50), (0.99, 3)):
            assert choose(row, number, temperature=1.0, top_p=top_p, top_k=top_k).item() == token
