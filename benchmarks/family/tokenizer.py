"""The tokenizer and chat template of the built-in family: whole words of the task, and single
characters for the rest."""

import re
from typing import TYPE_CHECKING, Any

from benchmarks.family import writer
from surgeon.builtin import task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
SPECIAL = (PAD, START, END, UNKNOWN)
WORDS = (
    *(f" {digit}" for digit in range(10)),
    *(f" {operation}" for operation in writer.PLAIN),
    *(f" {operator}{k}" for operator in task.AMBIGUOUS for k in range(1, 10)),
    *(f" {operator}" for operator in task.AMBIGUOUS),
    *(f" {meaning}" for meaning in writer.MEANINGS),
    *(f" {task.spelled(operation)}" for operation in writer.PLAIN),
    *("Start", " Apply", " Find x.", "Next", "So", "Wait, check"),
    *("Maybe", "Or", "Undo", "Note x", " after"),
    *(task.RESTART, task.FINISH, "Read", " as"),
    *(", ok.", ", no.", "Answer:", " Answer:", " ="),
    *("user", "assistant", "system", "\n\n"),
)
"""Every piece of task text that is one token; single characters make up the rest of the
vocabulary."""
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))

TEMPLATE = """\
{%- set last = namespace(user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set last.user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and loop.index0 < last.user and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""In the manner of Qwen3: the thinking of former assistant turns is dropped,
`enable_thinking=False` closes it at once."""


def build() -> "PreTrainedTokenizerFast":
    """The tokenizer, with its chat template set."""
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *task.THINK, *WORDS]
    words += [character for character in CHARACTERS if character not in words]
    tokenizer: Any = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, UNKNOWN))
    longest_first = sorted(WORDS, key=len, reverse=True)
    # A word ends where no letter or digit follows: ordinary text isn't torn at "So" or " as".
    pieces = [re.escape(w) + ("(?![A-Za-z0-9])" if w[-1].isalnum() else "") for w in longest_first]
    pattern = "|".join([*pieces, r"[\s\S]"])
    tokenizer.pre_tokenizer = Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in task.THINK])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast
