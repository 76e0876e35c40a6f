"""An extractor of your own: the answer is what stands in the last pair of double brackets.

    surgeon evaluate CHECKPOINT --task tasks.jsonl --answer my_extractor:bracketed --out runs/mine

Run it from this directory, or put the file on the Python path. The function gets the text after the
thinking and returns the answer, or None where there is none: that response then votes for nothing
and is wrong. When its file changes, the evaluation is another one.
"""

import re


def bracketed(text: str) -> str | None:
    found = re.findall(r"\[\[(.+?)\]\]", text)
    return found[-1].strip() if found else None
