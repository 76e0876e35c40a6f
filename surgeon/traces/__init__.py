"""Prompts in, traces out: what is asked, how answers are drawn, and how they are kept.

prompts.py    Prompt, and reading many of them
sources.py    rows of files and data sets
columns.py    which column of a row holds what
messages.py   messages of a conversation, in every spelling that files have
rendering.py  prompts through chat templates, with nothing left out
records.py    Trace, and its JSONL file
answered.py   prompts with their answers, as training and curation take them
imported.py   answers as plain text, made elsewhere
texts.py      tokens as text
sampling.py   what a sampler is asked, the decoder here as one, and `sampled`, which resumes
"""

from surgeon.settings.sampling import Sampling
from surgeon.traces.imported import read_plain
from surgeon.traces.prompts import Prompt, digest_of_prompts, parse_prompt, read_prompts
from surgeon.traces.records import (
    Key,
    Trace,
    append,
    in_order,
    keys_of,
    parse_trace,
    read_traces,
    settle,
    stored_traces,
)
from surgeon.traces.rendering import chosen_template, conversation, encode, template_text
from surgeon.traces.sampling import (
    Ask,
    LocalSampler,
    Sampler,
    Until,
    encode_all,
    ends_of,
    sample,
    sampled,
    stop_ids,
)
from surgeon.traces.texts import row_texts, text_of, token_texts

__all__ = [
    "Ask",
    "Key",
    "LocalSampler",
    "Prompt",
    "Sampler",
    "Sampling",
    "Trace",
    "Until",
    "append",
    "chosen_template",
    "conversation",
    "digest_of_prompts",
    "encode",
    "encode_all",
    "ends_of",
    "in_order",
    "keys_of",
    "parse_prompt",
    "parse_trace",
    "read_plain",
    "read_prompts",
    "read_traces",
    "row_texts",
    "sample",
    "sampled",
    "settle",
    "stop_ids",
    "stored_traces",
    "template_text",
    "text_of",
    "token_texts",
]
