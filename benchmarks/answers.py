"""How often a response is read right, on the responses of tests/data/answers.jsonl,
answers_fresh.jsonl, answers_blind.jsonl and answers_blind4.jsonl.

    python -m benchmarks.answers [FILE ...] [--each]

`--each` lists the rows that check exact, check math and math-verify judge wrong.
Each row of the table reads every response and compares what it finds with the gold answer. *Right*
is the share of responses judged as the file says; *wrong equal* are those called right that are
wrong, *missed* those called wrong that are right. The filters of lm-eval (gsm8k strict and
flexible, minerva_math) are their documented regexes and normalisations written anew here, not the
package; minerva_math's second step, a comparison by sympy, is left out. They expect the phrase that
their few-shot prompts teach, and most of these responses don't have it.
"""

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from surgeon.answers import check_many, choice_letter, parse_extractor, same

_DATA = Path(__file__).parents[1] / "tests/data"
FILES = tuple(_DATA / f"answers{part}.jsonl" for part in ("", "_fresh", "_blind", "_blind4"))
Row = dict
Judge = Callable[[Row], bool]


def read(row: Row) -> str | None:
    """The answer that this package finds, by the row's settings."""
    given = row.get("settings") or {}
    think = [tuple(given["think"])] if "think" in given else [("<think>", "</think>")]
    how = "choice" if row["kind"] == "choice" else "auto"
    return parse_extractor(how, given.get("words", ()), think)(row["response"])


def by_value(row: Row) -> bool:
    """--check exact (choice for multiple choice)."""
    answer = read(row)
    if answer is None:
        return False
    if row["kind"] == "choice":
        return choice_letter(answer) == choice_letter(row["gold"])
    return same(answer, row["gold"])


def by_math_verify(row: Row) -> bool:
    """math-verify reads response and gold itself, with its string extraction for letters."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    kinds = (
        [StringExtractionConfig(lowercase=False)]
        if row["kind"] == "choice"
        else [LatexExtractionConfig(), ExprExtractionConfig()]
    )
    # Without dollars a bare `16-4\pi` reads as its last number.
    gold = parse(f"${row['gold']}$", kinds) or parse(row["gold"], kinds)
    return bool(verify(gold, parse(row["response"], kinds)))


# --- lm-eval's filters ----------------------------------------------------------------------------

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (r",", r"\$", r"(?s).*#### ", r"\.$")
_MINERVA = re.compile(r"Final Answer: The final answer is(.*?). I hope it is correct.")


def _plain(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def gsm8k_strict(row: Row) -> bool:
    """The first match of the strict filter."""
    found = _STRICT.search(row["response"])
    return found is not None and _plain(found.group(1)) == _plain(row["gold"])


def gsm8k_flexible(row: Row) -> bool:
    """The last match of the flexible filter."""
    found = _FLEXIBLE.findall(row["response"])
    answer = next((part for part in found[-1] if part), "") if found else "[invalid]"
    return _plain(answer) == _plain(row["gold"])


_SUBSTITUTIONS = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), (r"\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units",
    "\\ldots", "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm",
    "pounds", "meters", "meals", "edges", "students", "childrentickets", "multiples",
    "\\text{s}", "\\text{.}",
    "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", r"\mathrm{th}",
    r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', "\\dots",
)  # fmt: skip


def _minerva(answer: str) -> str:
    """`normalize_final_answer` of Lewkowycz et al. (2022), App. D."""
    answer = answer.split("=")[-1]
    for before, after in _SUBSTITUTIONS:
        answer = answer.replace(before, after)
    for word in _REMOVED:
        answer = answer.replace(word, "")
    answer = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", "$\\3$", answer)
    for wrapper in ("text", "textbf", "overline"):
        answer = re.sub(rf"(\\{wrapper}\{{)(.*?)(\}})", "\\2", answer)
    answer = re.sub(r"(\\boxed\{)(.*)(\})", "\\2", answer)
    answer = re.sub(r"(frac)([^{])(.)", "frac{\\2}{\\3}", answer)
    answer = re.sub(r"(sqrt)([^{])", "sqrt{\\2}", answer).replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


def minerva(row: Row) -> bool:
    """The phrase of minerva_math's prompt, normalised; equal as texts."""
    found = _MINERVA.search(row["response"] + " I hope it is correct.")
    return found is not None and _minerva(found.group(1).strip()) == _minerva(row["gold"])


JUDGES: dict[str, Judge] = {
    "surgeon, check exact": by_value,
    "math-verify": by_math_verify,
    "lm-eval gsm8k strict (regex)": gsm8k_strict,
    "lm-eval gsm8k flexible (regex)": gsm8k_flexible,
    "lm-eval minerva_math (regex)": minerva,
}


def _rows(file: Path) -> list[Row]:
    """The rows of a file; those of a file that isn't split are a half of its name."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    name = file.stem.partition("_")[2]
    return [{**row, "half": name or row["half"]} for row in rows]


def judged(rows: list[Row]) -> dict[str, list[bool]]:
    """By reader, whether each row's response is called right."""
    verdicts = {name: [judge(row) for row in rows] for name, judge in JUDGES.items()}
    # What value doesn't find equal, math-verify may.
    found = check_many([(read(row), row["gold"]) for row in rows], "math")
    verdicts["surgeon, check math"] = [
        equal if row["kind"] == "choice" else verdict.correct
        for row, verdict, equal in zip(rows, found, verdicts["surgeon, check exact"], strict=True)
    ]
    return verdicts


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.answers")
    options.add_argument("files", nargs="*", type=Path, default=FILES)
    options.add_argument("--each", action="store_true")
    given = options.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    rows = [row for file in given.files for row in _rows(file)]
    halves = list(dict.fromkeys(row["half"] for row in rows))
    verdicts = judged(rows)
    print(f"| reader | {' | '.join(f'{half}, right' for half in halves)} | wrong equal | missed |")
    print("|---|" + "---|" * (len(halves) + 2))
    for name, equal in verdicts.items():
        pairs = list(zip(rows, equal, strict=True))
        cells = []
        for half in halves:
            of_half = [e == r["right"] for r, e in pairs if r["half"] == half]
            cells.append(f"{100 * sum(of_half) / len(of_half):.1f} % of {len(of_half)}")
        wrong = sum(e and not r["right"] for r, e in pairs)
        missed = sum(r["right"] and not e for r, e in pairs)
        print(f"| {name} | {' | '.join(cells)} | {wrong} | {missed} |")
    listed = ("surgeon, check exact", "surgeon, check math") + ("math-verify",) * given.each
    for name in listed:
        for row, equal in zip(rows, verdicts[name], strict=True):
            if equal != row["right"] and (equal or given.each):
                said = "equal" if equal else "different"
                print(f"{name}: {row['id']}: {read(row)!r} called {said}, gold {row['gold']!r}")


if __name__ == "__main__":
    main()
