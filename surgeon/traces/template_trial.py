"""A chat template is tried out before it is used: it comes with a checkpoint that may be anybody's.

Jinja's sandbox keeps a template from files and code. Nothing keeps it from loops without end or
texts without bounds. So each rendering is done in a process of its own first, which is killed when
it takes too long and can't have more than some memory. Only then it is done here.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from surgeon.errors import BadInput

LIMIT_S = 10.0
"""Seconds that one rendering may take."""
MEMORY = 1 << 30
"""Bytes that the process may have, beside sixteen times what it is given."""
LONGEST = 1 << 24
"""Characters that a rendering may have, beside sixteen times what it is given."""
SCRIPT = Path(__file__).with_name("template_process.py")


class RunawayTemplateError(BadInput):
    """A chat template that renders a prompt too slowly or to too much."""


class Renderer:
    """The process, started when it is first asked, and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0
        self.memory = MEMORY
        self.lock = threading.Lock()

    def length(self, job: str) -> int | None:
        """Characters of a rendering; None where it was killed, or had no memory."""
        with self.lock:
            # A forked process must not share its parent's pipes.
            if self.process is None or self.owner != os.getpid() or 16 * len(job) > self.memory:
                self.end()
                self.start(max(MEMORY, 32 * len(job)))
            assert self.process is not None and self.process.stdin and self.process.stdout
            late = threading.Timer(LIMIT_S, self.process.kill)
            late.daemon = True
            late.start()
            try:
                self.process.stdin.write(job + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = ""
            late.cancel()
            if not line.endswith("\n"):
                self.end()
                return None
            return json.loads(line)

    def start(self, memory: int) -> None:
        """Begin a process with so much memory."""
        self.memory, self.owner = memory, os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-I", os.fspath(SCRIPT)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([LIMIT_S, memory + (256 << 20)]) + "\n")

    def end(self) -> None:
        """Kill the process, if it is this one's."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


RENDERER = Renderer()
atexit.register(RENDERER.end)


def try_out(template: str, variables: Mapping[str, Any]) -> None:
    """Raise `RunawayTemplateError` where the template takes more than it may for this prompt.

    A template that refuses the prompt passes: the rendering that counts says why.
    """
    if sys.platform == "win32":  # no limits there
        return
    job = json.dumps([template, variables])
    found, longest = RENDERER.length(job), LONGEST + 16 * len(job)
    if found is None or found > longest:
        what = "more time or memory" if found is None else f"{found:,} characters"
        raise RunawayTemplateError(
            f"the checkpoint's chat template takes {what} for a prompt, expected at most "
            f"{LIMIT_S:.0f} s, {MEMORY >> 30} GB and {longest:,} characters. Choose another with "
            "--template NAME, or mend the template."
        )
