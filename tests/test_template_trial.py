"""A chat template that runs away is stopped, whatever it does, and the next one is rendered."""

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.traces import Prompt, encode, template_trial

USER = {"role": "user", "content": "w1 w2"}
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
POWER = "{{ 9 ** (9 ** 9) }}"
HUGE = "{{ 'a' * 10 ** 10 }}"
DOUBLED = (
    "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}"
)
LONG = "{{ 'a' * 20000000 }}"
PLAIN = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture
def tokenizer(pico_source: tuple[Path, Path]) -> Any:
    return Checkpoint.open(pico_source[0]).tokenizer()


@pytest.mark.parametrize(
    "template", [ENDLESS, POWER, HUGE, DOUBLED, LONG], ids=["loop", "power", "text", "set", "long"]
)
def test_a_template_that_runs_away_is_refused(
    tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(template_trial, "LIMIT_S", 0.7)
    tokenizer.chat_template = template + PLAIN
    with pytest.raises(BadInput, match=r"^the checkpoint's chat template takes .* --template"):
        encode(tokenizer, Prompt("p", (USER,)))
    tokenizer.chat_template = PLAIN
    assert tokenizer.decode(encode(tokenizer, Prompt("p", (USER,)))).split() == ["w1", "w2"]


def test_a_template_sees_no_code_and_no_files(tokenizer: Any):
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + PLAIN
    with pytest.raises(BadInput, match="unsafe"):
        encode(tokenizer, Prompt("p", (USER,)))
    tokenizer.chat_template = "{% include '/etc/passwd' %}" + PLAIN
    with pytest.raises(BadInput, match="chat template refuses it"):
        encode(tokenizer, Prompt("p", (USER,)))


def test_what_transformers_offers_a_template_is_there(tokenizer: Any):
    template = (
        "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}"
        "{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
        "{{ strftime_now('%Y') }}{{ bos_token }}"
    )
    variables = {"messages": [USER], "bos_token": "w3"}
    assert template_trial.RENDERER.length(json.dumps([template, variables])) == 13
