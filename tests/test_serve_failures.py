"""A server whose model fails: for good, or for one answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from serving import CHAT, TIMEOUT_S, TOKENS, Gate, Model, joined, serving, until

from surgeon.serve.worker import FAILURES


def test_a_device_that_is_lost_ends_every_request_and_none_waits(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    """An assertion on the device: no later pass would get over it. One row, so one request waits
    for it: both, and those that come later, get an answer of 5xx."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    with serving(rows=1) as server, ThreadPoolExecutor(2) as pool:
        lost = threading.Event()

        def forward(*_: Any) -> None:
            if lost.is_set():
                raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")

        server.worker.model.get_input_embeddings().register_forward_pre_hook(forward)  # pyright: ignore
        stream = server.chat(0, stream=True, max_tokens=1000)
        next(stream)
        waits = pool.submit(server.send, "POST", "/v1/chat/completions", CHAT)
        until(lambda: server.worker.load == (1, 1))
        lost.set()
        with pytest.raises(openai.APIError, match=r"The engine is dead: .*device-side assert"):
            joined(stream)
        for status, body, _ in (
            waits.result(TIMEOUT_S), server.send("POST", "/v1/chat/completions", CHAT)
        ):  # fmt: skip
            assert status == 503 and body["error"]["code"] == "engine_dead"
            assert "device-side assert" in body["error"]["message"]
        status, body, _ = server.send("GET", "/health")
        assert (status, body["status"]) == (503, "dead") and "assert triggered" in body["reason"]
    assert isinstance(raised[0], RuntimeError)
    assert "The engine is dead: RuntimeError: CUDA error" in capfd.readouterr().err


def test_a_row_without_finite_logits_fails_alone(capfd: Any):
    here = Model.load()
    with serving(rows=16) as server:
        ids = here.ids(0)
        bad = max(set(range(here.model.config.vocab_size)) - {*ids, *here.ids(1)})
        embedding: Any = server.worker.model.get_input_embeddings()  # pyright: ignore
        embedding.register_forward_hook(
            lambda _, args, out: out.masked_fill((args[0] == bad)[..., None], torch.nan)
        )
        gate = Gate(server.worker)
        with ThreadPoolExecutor(2) as pool:
            good = pool.submit(server.chat, 1)
            until(lambda: server.worker.load == (1, 0))
            broken = pool.submit(
                server.send, "POST", "/v1/completions", dict(prompt=[*ids, bad], max_tokens=TOKENS)
            )
            until(lambda: server.worker.load == (2, 0))
            gate.lift()
            status, body, _ = broken.result(TIMEOUT_S)
            assert status == 500 and "logits that are not finite" in body["error"]["message"]
            expected = here.text(*here.decode(here.request(1)))
            assert good.result(TIMEOUT_S).choices[0].message.content == expected
        status, body, _ = server.send("GET", "/health")
        assert (status, body["status"], body["running"]) == (200, "ok", 0)
        read = dict(prompt=[*ids, bad, ids[0]], max_tokens=0, echo=True, logprobs=1)
        status, body, _ = server.send("POST", "/v1/completions", read)
        assert status == 500 and "not finite" in body["error"]["message"]
        assert server.chat(1).choices[0].message.content == expected
    assert "An answer failed" in capfd.readouterr().err


@pytest.mark.parametrize("numbers", [True, False])
def test_a_model_whose_every_pass_fails_is_dead_and_one_that_some_prompts_break_is_not(
    numbers: bool, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    """On a CPU, with words that say nothing of a device, or with logits that are not finite."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with serving(rows=2) as server:
        ids = Model.load().ids(0)
        every = threading.Event()

        def forward(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            if not every.is_set() and args[0].shape[-1] < 4 and not (args[0] == ids[-1]).any():
                return out
            if not numbers:
                raise RuntimeError("no kernel for this, in a library of its own")
            return out * torch.nan

        server.worker.model.get_input_embeddings().register_forward_hook(forward)  # pyright: ignore

        def fails(**more: Any) -> None:
            status, body, _ = server.send("POST", "/v1/completions", dict(prompt=ids, **more))
            assert status == 500 and "The model failed" in body["error"]["message"]

        for _ in range(2 * FAILURES + 1):
            fails(max_tokens=4)
        assert server.send("GET", "/health")[0] == 200
        every.set()
        for _ in range(FAILURES - 1):  # one failed just now
            fails(**(dict(max_tokens=4) if numbers else dict(max_tokens=0, echo=True, logprobs=1)))
        until(lambda: server.worker.dead is not None)
        status, body, _ = server.send("GET", "/health")
        assert (status, body["status"]) == (503, "dead")
        assert f"{FAILURES} passes in a row failed" in body["reason"]
        assert ("not finite" if numbers else "no kernel for this") in body["reason"]
        status, body, _ = server.send("POST", "/v1/completions", dict(prompt=ids))
        assert status == 503 and body["error"]["code"] == "engine_dead"
    assert "The engine is dead" in capfd.readouterr().err
