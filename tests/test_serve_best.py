"""`surgeon serve`: more answers are decoded than sent, and a rule keeps the best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import MODEL, Model, Server, serving

from surgeon import lineage, nex
from surgeon.activations import record
from surgeon.checkpoint import resolve
from surgeon.errors import BadInput
from surgeon.serve.best import best_first
from surgeon.serve.service import load
from surgeon.settings.serve import ServeSettings
from surgeon.traces import Trace


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neuron weights of the model, drawn at random."""
    checkpoint = resolve(MODEL)
    file = tmp_path_factory.mktemp("best") / "weights.safetensors"
    draw = np.random.default_rng(0)
    weight_LF = draw.uniform(-1, 1, (checkpoint.n_layers, checkpoint.d_ff)).astype(np.float32)
    lineage.write_tensors(file, {"weight_LF": weight_LF}, {"digest": checkpoint.digest})
    return file


@pytest.fixture(scope="module")
def server(weights: Path) -> Any:
    with serving(best_of=3, weights=str(weights), rows=4) as running:
        yield running


def test_the_answer_with_the_largest_good_mass_fraction_is_sent(server: Server, weights: Path):
    from safetensors.numpy import load_file

    here = Model.load()
    (choice,) = server.chat(1, extra_body={"return_token_ids": True}).choices
    told = choice.surgeon["best_of"]
    plain = server.chat(1, n=3, extra_body={"best_of": 3, "return_token_ids": True})
    assert plain.usage.completion_tokens == sum(len(c.token_ids) for c in plain.choices)
    assert [c.index for c in plain.choices] == [0, 1, 2]
    assert "best_of" not in (plain.choices[0].model_extra or {}).get("surgeon", {})
    traces = [
        Trace("", n, here.ids(1), c.token_ids, "", "stop") for n, c in enumerate(plain.choices)
    ]
    weight_N = load_file(weights)["weight_LF"].ravel()
    scores = []
    for recording in record(here.model, traces, top_k=9):
        mass = nex.response_mass(recording.activations)
        scores.append(nex.good_mass_fraction(*mass, weight_N).score)
    assert told["of"] == 3 and told["by"] == "nex"
    assert told["scores"] == pytest.approx(scores, abs=1e-5)
    assert told["score"] == max(told["scores"])
    best = plain.choices[int(np.argmax(scores))]
    assert choice.message.content == best.message.content and choice.token_ids == best.token_ids
    # A stream of it comes at once, and a completion is chosen alike.
    pieces = list(server.chat(1, stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in pieces)
    assert text == best.message.content and pieces[-1].choices[0].surgeon["best_of"] == told
    two = server.client.completions.create(
        model="thinking", prompt=here.ids(1), best_of=3, n=2, seed=1, max_tokens=40
    )
    order = np.argsort(-np.array(scores), kind="stable")[:2]
    assert [c.text for c in two.choices] == [plain.choices[i].message.content for i in order]
    assert two.usage is not None and two.usage.completion_tokens == plain.usage.completion_tokens
    # Greedy answers are all alike, and one is enough.
    (greedy,) = server.chat(1, temperature=0).choices
    assert "surgeon" not in (greedy.model_extra or {})


def test_equals_keep_their_order_and_those_without_a_value_come_last():
    assert best_first([None, 0.5, 0.9, 0.5]) == [2, 1, 3, 0]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"best_by": "nex"}, "without weights"),
        ({"best_by": "consensus"}, "found by = consensus, expected one of"),
        ({"weights": "nowhere"}, "has no neuron weights"),
    ],
)
def test_what_cannot_choose_is_refused_before_the_model_is_loaded(given: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        load(ServeSettings(checkpoint=MODEL, **given))
