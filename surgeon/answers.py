r"""Answers: read them out of a response, bring them to one form, judge them against the gold.

Nothing here runs a model. `extract` never raises on any text; what can be wrong is the *name* of an
extractor or of a check, and `parse_extractor` and `parse_check` say so before any response is made.

Extractors (`--answer`), all applied to the text after the last `</think>`:

- `auto`: the last `\boxed{...}`, else the last `Answer:` line, else the last number, else the last
  line that is not empty.
- `boxed`: what stands in the last `\boxed{...}` with balanced braces.
- `choice`: a letter A-J; the last boxed one, else the last after "answer" or "correct option", else
  the last such as `(C)`, `**C**` or `C.` at the head of a line, else the last that stands alone.
- `number`: the last whole or decimal number, thousands commas removed.
- `last-line`: the last line that is not empty.
- a regex with exactly one group; the last match counts. Python syntax without flags: write `(?i)`,
  `(?m)` in it.
- `module:function`, called as `function(text) -> str | None`.

Checks (`--check`): `exact` (equal in `canonical` form), `choice` (the same letter), `math` (equal
in canonical form, or equal to math-verify), `module:function`, called as
`function(answer, gold) -> bool`.
"""

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import IO, TYPE_CHECKING, NamedTuple

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgeon.traces import Trace

Extractor = Callable[[str], str | None]
Check = Callable[[str, str], bool]

_MODULE_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


# --- the part of a response that holds the answer -------------------------------------------------


def after_thinking(text: str) -> str | None:
    """The text after the last `</think>`: all of it without one, None when a block never ends."""
    answer = text.rpartition("</think>")[2]
    return None if "<think>" in answer else answer


# --- extractors: text after the thinking block -> answer ------------------------------------------

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> str | None:
    # One pass with a stack: a response that repeats "\boxed{" must not cost quadratic time.
    open_at: list[int | None] = []
    last_start, found = -1, None
    for token in _BRACES.finditer(text):
        word = token.group()
        if word == "{":
            open_at.append(None)
        elif word.startswith("\\boxed"):
            open_at.append(token.end())
        elif word == "}" and open_at:
            start = open_at.pop()
            if start is not None and start > last_start:
                inside = text[start : token.start()].strip()
                if inside:
                    last_start, found = start, inside
    return found


# "I" and "A" are also English words: not a choice in "I think" or "A train leaves".
_NOT_A_WORD = r"(?![A-Za-z0-9_'’])"
_NOT_PROSE = r"(?!(?<=[IA])[ \t]+[a-z])"
_NOT_PRONOUN = r"(?!(?<=I)\s+(?:am|was|do|don|did|can|could|would|will|think|believe|need|have)\b)"
_CHOICE_BOX = re.compile(r"[\s({\[*$]*([A-Ja-j])(?![A-Za-z0-9])")
_CHOICE_FORMS = (
    re.compile(
        r"(?i:\banswer|\bcorrect (?:choice|option|one))[*_\s]*(?i:is\b)?[*_\s]*[:：=]?"
        r"[\s*_$\"'(\[{]*"
        rf"(?:([A-J]){_NOT_A_WORD}{_NOT_PRONOUN}|([a-j])[).\]*_ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(
        r"\(([A-J])\)|\[([A-J])\]|\*\*([A-J])[.)]?\*\*|^[ \t]*([A-J])(?:[.):][ \t]|[.):]?[ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(rf"(?<![A-Za-z0-9_'’])([A-J]){_NOT_A_WORD}{_NOT_PROSE}"),
)
_MARKUP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|mbox)\b")


def _choice(text: str) -> str | None:
    box = _boxed(text)
    if box is not None:
        letter = _CHOICE_BOX.match(_MARKUP.sub("", box))
        if letter:
            return letter.group(1).upper()
    for form in _CHOICE_FORMS:
        found = None
        for match in form.finditer(text):
            found = match
        if found:
            return next(group for group in found.groups() if group).upper()
    return None


# The sign counts only where it can't be a minus between two terms ("10-3" ends in 3).
_NUMBER = re.compile(
    r"(?:(?<![A-Za-z0-9_.)\]}])[-+−])?"
    r"(?<![A-Za-z0-9_.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
)


def _number(text: str) -> str | None:
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    return None if found is None else found.replace(",", "").replace("−", "-").removeprefix("+")


def _last_line(text: str) -> str | None:
    for line in reversed(text.splitlines()):
        if line.strip():
            return line.strip()
    return None


_ANSWER_LINE = re.compile(r"(?i)\banswer(?:\s+is)?[*_\s]*[:：=][*_\s]*(\S.*)")


def _answer_line(text: str) -> str | None:
    found = None
    for match in _ANSWER_LINE.finditer(text):
        found = match.group(1)
    return None if found is None else found.strip().strip("*_").strip() or None


def _auto(text: str) -> str | None:
    for read in (_boxed, _answer_line, _number, _last_line):
        found = read(text)
        if found is not None:
            return found
    return None


EXTRACTORS: dict[str, Extractor] = {
    "auto": _auto,
    "boxed": _boxed,
    "choice": _choice,
    "number": _number,
    "last-line": _last_line,
}


def parse_extractor(how: str) -> Extractor:
    """The function that `how` names: response text -> answer, or None where there is none.

    The function looks only at the text after the thinking block. Raises `BadInput` for an unknown
    name, an invalid regex, one with other than one group, or a `module:function` that can't be
    imported.
    """
    if how in EXTRACTORS:
        read = EXTRACTORS[how]
    elif _MODULE_FUNCTION.fullmatch(how):
        read = _returning_text(named_function(how, "answer extractor"), how)
    else:
        read = _last_group(_one_group(how))

    def answer(text: str) -> str | None:
        tail = after_thinking(text)
        return None if tail is None else read(tail)

    return answer


def extract(text: str, how: str = "auto") -> str | None:
    """The answer in a response, read the way `how` says (see the module); None if there is none."""
    return parse_extractor(how)(text)


def read_answers(
    traces: "Sequence[Trace]", read: Extractor, tokenizer: "PreTrainedTokenizerBase"
) -> list[str | None]:
    """The answer in each response; None for a truncated one, whose last number means nothing.

    Where the chat template has begun the thinking block, so that a response has no `<think>`, one
    that never closes the block is unfinished all the same.
    """
    if not traces:
        return []
    prompt_ends = str(tokenizer.decode(traces[0].prompt_token_ids[-32:]))
    opening = "<think>" if after_thinking(prompt_ends) is None else ""
    return [None if t.finish_reason == "length" else read(opening + t.text) for t in traces]


def _one_group(how: str) -> re.Pattern[str]:
    names = ", ".join(EXTRACTORS)
    try:
        pattern = re.compile(how)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(
            f"found the answer extractor {how!r}, which is not a valid regex ({error}); expected "
            f"{names}, module:function, or a regex with exactly one group."
        ) from None
    if pattern.groups != 1:
        raise BadInput(
            f"found the answer extractor {how!r}, a regex with {pattern.groups} groups; expected "
            f"{names}, module:function, or a regex with one group such as 'Answer: (.+)'."
        )
    return pattern


def _last_group(pattern: re.Pattern[str]) -> Extractor:
    def read(text: str) -> str | None:
        found = None
        for match in pattern.finditer(text):
            if match.group(1) and match.group(1).strip():
                found = match.group(1).strip()
        return found

    return read


def _returning_text(function: Callable[..., object], how: str) -> Extractor:
    def read(text: str) -> str | None:
        found = function(text)
        if found is None or isinstance(found, str):
            return found
        raise BadInput(f"found {type(found).__name__} returned by {how}, expected str or None.")

    return read


def named_function(spec: str, what: str) -> Callable[..., object]:
    """The function that `module:function` names, from the Python path or the current directory.

    Raises `BadInput` when there is no such module or function; `what` says what it was wanted for.
    An error inside the module's own code keeps its traceback.
    """
    module_name, _, attribute = spec.partition(":")
    if not _MODULE_FUNCTION.fullmatch(spec):
        raise BadInput(f"found the {what} {spec!r}, expected module:function.")
    if os.getcwd() not in sys.path:
        # Last, so that a file beside the user's data can't shadow an installed module.
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise BadInput(
            f"found the {what} {spec!r}, but {module_name} can't be imported ({error}); expected a "
            "module on the Python path or in the current directory."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise BadInput(
            f"found the {what} {spec!r}, but {module_name} has no function {attribute!r}."
        )
    return function


# --- one form per answer --------------------------------------------------------------------------

_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,!;:> ]|\\q?quad\b|\\(?:left|right)(?![A-Za-z])|~|\s+")
_AROUND_SIGNS = re.compile(r" *([,;:=+\-*/^(){}\[\]<>|]) *")
_THOUSANDS = re.compile(r"([-+]?\\?[$€£]?)([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_DECIMAL = re.compile(r"([-+]?)([0-9]+)(?:\.([0-9]*))?")


def canonical(answer: str) -> str:
    r"""The form under which two answers are the same vote: `\text{ 1,000.}` -> `1000`.

    Removed: outer spaces, `$`, `\( \)` and `\text{}`; LaTeX spacing and `\left \right`; spaces
    around signs; trailing dots; thousands commas; the plus sign and trailing zeros of a plain
    decimal number. `\dfrac` becomes `\frac`. Letter case is kept. Applying it twice changes
    nothing, and an answer of which nothing would remain is kept as it is.
    """
    while True:
        shorter = _once_shorter(answer)
        if not shorter or shorter == answer:
            return answer
        answer = shorter


def _once_shorter(answer: str) -> str:
    answer = answer.replace("−", "-").replace("{,}", ",").replace("\\%", "%")
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    answer = _WRAPPED.sub(r"\1", answer)
    answer = _LATEX_SPACE.sub(_space_or_nothing, answer)
    answer = _AROUND_SIGNS.sub(r"\1", answer).strip()
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = answer[len(opening) : len(answer) - len(closing)]
        if (
            len(answer) >= len(opening) + len(closing)
            and answer == opening + inside + closing
            and opening not in inside
        ):
            answer = inside.strip()
    answer = answer.rstrip(".。").rstrip()
    thousands = _THOUSANDS.match(answer)
    if thousands:
        answer = thousands[1] + thousands[2].replace(",", "") + answer[thousands.end() :]
    decimal = _DECIMAL.fullmatch(answer)
    if decimal:
        sign, whole, part = decimal[1].replace("+", ""), decimal[2], (decimal[3] or "").rstrip("0")
        answer = f"{sign}{whole}.{part}" if part else f"{sign}{whole}"
    return answer


def _space_or_nothing(found: re.Match[str]) -> str:
    return " " if found.group().isspace() or found.group() == "~" else ""


# --- checks: answer, gold -> right or wrong -------------------------------------------------------


class Verdict(NamedTuple):
    """Whether an answer is right, and whether its check had to be stopped (it is wrong then)."""

    correct: bool
    timed_out: bool = False
    """the check ran past the wall-clock limit and its process was killed"""
    died: bool = False
    """the process of the check ended by itself, for example for want of memory"""


def choice_letter(answer: str) -> str | None:
    """The letter A-J that a short answer such as `C`, `(c)`, `C.` or `Answer: C` stands for."""
    plain = canonical(answer).strip("()[]{}*.: ")
    return plain.upper() if len(plain) == 1 and plain.upper() in "ABCDEFGHIJ" else _choice(answer)


def _exact_check(answer: str, gold: str) -> bool:
    return canonical(answer) == canonical(gold)


def _choice_check(answer: str, gold: str) -> bool:
    letter = choice_letter(answer)
    return letter is not None and letter == choice_letter(gold)


def _math_check(answer: str, gold: str) -> bool:
    """What math-verify says, without its own time limits: a worker process has a hard one."""
    from math_verify import parse, verify

    # Its own limits use SIGALRM: they fail in threads and can't stop a computation inside C code.
    wanted = parse(_as_latex(gold), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    given = parse(_as_latex(answer), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return bool(verify(wanted, given, timeout_seconds=None))


def _as_latex(answer: str) -> str:
    # math-verify reads plain "x^2+1" as nothing at all; inside dollars it is an expression.
    return answer if "$" in answer or "\\(" in answer or "\\boxed" in answer else f"${answer}$"


CHECKS: dict[str, Check] = {"exact": _exact_check, "choice": _choice_check, "math": _math_check}

_MEMORY_LIMIT = 4 << 30
"""Bytes of address space of a math worker: a power tower must not fill the machine in seconds."""
_EXIT_LIMIT_S = 10.0
"""Seconds a worker that has closed its output may take to end before it is killed."""
_START_LIMIT_S = 120.0
"""Seconds a worker may take to start and import; not counted against the limit of a pair."""


def parse_check(how: str) -> str:
    """`how` itself when it names a check; raises `BadInput` when it doesn't or can't be used."""
    if how in CHECKS:
        if how == "math" and importlib.util.find_spec("math_verify") is None:
            raise BadInput(
                "found no math-verify, needed by the check 'math'. Do: pip install 'surgeon[math]'"
            )
    elif _MODULE_FUNCTION.fullmatch(how):
        named_function(how, "answer check")
    else:
        raise BadInput(
            f"found the answer check {how!r}, expected {', '.join(CHECKS)} or module:function."
        )
    return how


def gold_problem(gold: str, how: str) -> str | None:
    """Why no answer could be right against this gold answer under the check `how`, or None."""
    if not gold.strip():
        return "an empty answer"
    if how == "choice" and choice_letter(gold) is None:
        return f"the answer {gold!r}, expected a letter A-J for the check 'choice'"
    return None


def check_many(
    pairs: Sequence[tuple[str | None, str]],
    how: str,
    *,
    timeout_s: float = 5.0,
    workers: int = 2,
) -> list[Verdict]:
    """One verdict per (answer, gold), in order; no answer (None) is wrong.

    `exact` and `choice` are decided here. `math` and `module:function` run in `workers` fresh
    processes with a hard limit of `timeout_s` seconds of wall-clock time per pair: past it the
    process is killed and replaced, and the answer counts as wrong. Equal pairs are checked once.
    May be called from any thread; no process is left behind. Raises `BadInput` for an unknown
    check, and when the user's function raises.
    """
    parse_check(how)
    if timeout_s <= 0 or workers < 1:
        raise BadInput(f"found timeout_s={timeout_s}, workers={workers}; expected both above zero.")
    verdicts: dict[tuple[str, str], Verdict] = {}
    waiting: list[tuple[str, str]] = []
    for answer, gold in dict.fromkeys(pairs):
        if answer is None:
            continue
        if how in ("exact", "choice"):
            verdicts[answer, gold] = Verdict(CHECKS[how](answer, gold))
        elif how == "math" and _exact_check(answer, gold):
            verdicts[answer, gold] = Verdict(True)
        else:
            waiting.append((answer, gold))
    if waiting:
        verdicts.update(_check_in_processes(waiting, how, timeout_s, min(workers, len(waiting))))
    return [Verdict(False) if answer is None else verdicts[answer, gold] for answer, gold in pairs]


# --- worker processes -----------------------------------------------------------------------------


def _check_in_processes(
    pairs: list[tuple[str, str]], how: str, timeout_s: float, workers: int
) -> dict[tuple[str, str], Verdict]:
    todo = deque(pairs)
    verdicts: dict[tuple[str, str], Verdict] = {}
    running = [_Worker(how, timeout_s) for _ in range(workers)]

    def drain(worker: _Worker) -> None:
        while todo:
            try:
                pair = todo.popleft()
            except IndexError:  # the other thread took the last one
                return
            verdicts[pair] = worker.check(*pair)

    with ThreadPoolExecutor(workers, thread_name_prefix="answer-check") as pool:
        try:
            done, _ = wait(
                [pool.submit(drain, worker) for worker in running], return_when=FIRST_EXCEPTION
            )
            for future in done:
                future.result()
        finally:
            # Whatever happened, Ctrl-C included: the threads end once their processes are gone.
            todo.clear()
            for worker in running:
                worker.close()
    return verdicts


class _Worker:
    """A fresh Python process that checks one pair at a time, killed when one takes too long."""

    def __init__(self, how: str, timeout_s: float):
        self.how = how
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[str] | None = None
        self.closed = False
        self.lock = threading.Lock()

    def check(self, answer: str, gold: str) -> Verdict:
        if self.process is None:
            self._start()
        line, too_late = self._ask([answer, gold], self.timeout_s)
        exit_code = None if line and not too_late else self._end(0 if too_late else _EXIT_LIMIT_S)
        if line:
            return Verdict(json.loads(line))
        # An uncaught Python exception ends a process with status 1, its traceback is on stderr.
        # math-verify catches its own: what is left there is want of memory, and only one pair's.
        if exit_code == 1 and self.how not in CHECKS:
            raise BadInput(
                f"the answer check {self.how} raised an exception (shown above) on the answer "
                f"{answer!r} with the gold answer {gold!r}. Return True or False for any answer."
            )
        return Verdict(False, timed_out=too_late, died=not too_late)

    def close(self) -> None:
        """End the process, whatever it is doing; a `check` waiting for it in a thread returns."""
        with self.lock:
            self.closed = True
        self._end()

    def _start(self) -> None:
        # Where this package lies comes last: it may have been imported from a place since left.
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = json.dumps([*(place or os.getcwd() for place in sys.path), home])
        with self.lock:
            if self.closed:
                return
            # A new interpreter and not a fork: the caller may hold threads, locks, an accelerator.
            # -c and not multiprocessing, which would import the caller's main script again. A
            # session of its own, so that what the check itself starts can be killed with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
        line, _ = self._ask([self.how, self.timeout_s], _START_LIMIT_S)
        if not line and not self.closed:
            self._end()
            raise RuntimeError(f"the process for the answer check {self.how} did not start")

    def _ask(self, message: list[str | float], limit_s: float) -> tuple[str, bool]:
        """The reply of the process ("" when it ended), and whether it was killed for being late."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return "", False
        too_late = threading.Event()

        def kill() -> None:
            too_late.set()
            _kill(process)

        timer = threading.Timer(limit_s, kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        timer.join()  # from here on `too_late` can't change
        return (line if line.endswith("\n") else ""), too_late.is_set()

    def _end(self, grace_s: float = 0) -> int | None:
        """Kill and reap the process, after `grace_s` for one that is ending; its exit code."""
        with self.lock:
            process, self.process = self.process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        _kill(process)
        exit_code = process.wait()
        for pipe in (process.stdin, process.stdout):
            # What was still buffered for a dead process can't be delivered, and need not be.
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        return exit_code


def _kill(process: "subprocess.Popen[str]") -> None:
    # Not process.kill(): that spares what the check has started.
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


_BOOT = (
    "import json, sys; given = json.loads(sys.argv[1]); "
    "sys.path[:] = given + [place for place in sys.path if place not in given]; "
    "from surgeon.answers import _serve; _serve()"
)


def _serve() -> None:
    """The loop of a worker process: one line of JSON in, one out, until the input ends."""
    replies = _private_stdout()
    how, timeout_s = json.loads(sys.stdin.readline())
    if how == "math":
        _prepare_math()
    check = CHECKS[how] if how in CHECKS else named_function(how, "answer check")
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        _self_destruct_after(timeout_s + 2)
        correct = bool(check(answer, gold))
        _self_destruct_after(0)
        print(json.dumps(correct), file=replies, flush=True)


def _private_stdout() -> IO[str]:
    # A check that prints must not write into the replies: from now on descriptor 1 is stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _prepare_math() -> None:
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    _math_check(
        "x", "1"
    )  # imports and builds its grammar before the clock of the first pair starts
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))


def _self_destruct_after(seconds: float) -> None:
    """Have the kernel end this process: the last resort if the parent, whose job it is, is dead."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
