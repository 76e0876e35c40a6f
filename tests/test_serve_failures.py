"""A server whose model fails: for good, or for one answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from serving import CHAT, TIMEOUT_S, TOKENS, Gate, Model, joined, serving, until


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
