r"""Answers: read them out of a response, bring them to one form, judge them against the gold.

Nothing here runs a model. `extract` never raises on any text; what can be wrong is the *name* of an
extractor or of a check, and `parse_extractor` and `parse_check` say so before any response is made.

Extractors (`--answer`), all applied to the text after the thinking block, whose tags the chat
template names:

- `auto`: the last `\boxed{...}`, with those beside it ("1 and 2" in two boxes); else `<answer>`, a
  JSON `"answer"`, GSM8K's `####`; else what the last "the answer is", "Final answer:" or heading
  states, up to the end of its sentence; else a last line without words; else the last formula or
  number of the prose, with its fraction bar, percent sign or time; else yes, no, true or false;
  else the last line that is not empty.
- `boxed`: what stands in the last `\boxed{...}` with balanced braces, and those beside it.
- `choice`: a letter A-J; the last boxed one, else the last after "answer" or "correct option", else
  the last that "is correct", else the last such as `(C)`, `**C**` or `C.` at the head of a line,
  else the last that stands alone.
- `number`: the last whole or decimal number, thousands commas removed.
- `last-line`: the last line that is not empty.
- a regex with exactly one group; the last match counts. Python syntax without flags: write `(?i)`,
  `(?m)` in it.
- `module:function`, called as `function(text) -> str | None`.

Checks (`--check`): `exact` (equal in value: see `values`), `choice` (the same letter), `math`
(equal in value, or equal to math-verify), `module:function`, called as
`function(answer, gold) -> bool`. Votes are counted by the same equality: see `votes`.
"""

from surgeon.answers.check_worker import check_many
from surgeon.answers.checks import (
    CHECKS,
    Check,
    CheckVerdict,
    choice_letter,
    gold_problem,
    parse_check,
)
from surgeon.answers.extractors import (
    EXTRACTORS,
    Extractor,
    extract,
    final_texts,
    parse_extractor,
    read_answers,
)
from surgeon.answers.thinking import TAGS, after_thinking, opened, parse_tags, tags_of
from surgeon.answers.values import canonical, same
from surgeon.answers.votes import classes, classes_of, majority

__all__ = [
    "CHECKS",
    "EXTRACTORS",
    "TAGS",
    "Check",
    "CheckVerdict",
    "Extractor",
    "after_thinking",
    "canonical",
    "check_many",
    "choice_letter",
    "classes",
    "classes_of",
    "extract",
    "final_texts",
    "gold_problem",
    "majority",
    "opened",
    "parse_check",
    "parse_extractor",
    "parse_tags",
    "read_answers",
    "same",
    "tags_of",
]
