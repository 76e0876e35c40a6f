"""Several workers make the files that one makes, and a dead one loses what it had in flight."""

import json
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import BadInput
from surgeon.settings.workforce import Workforce
from surgeon.workers import Bench, Crew, Roster, roster
from surgeon.workers import crew as driver
from surgeon.workers.bench import Job, Start, hello, work
from surgeon.workers.crew import Gone

# --- jobs that processes can import: they know this module by name --------------------------------


def double(bench: Bench, numbers: list[int]) -> Iterator[tuple[int, int, bool]]:
    for number in numbers:
        yield number, 2 * number, True


def die_once(bench: Bench, order: tuple[str, list[int]]) -> Iterator[tuple[int, int, bool]]:
    """The first worker to see 3 is killed there; a file says that it was."""
    mark, numbers = order
    for number in numbers:
        if number == 3 and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number, 2 * number, True


def die_always(bench: Bench, numbers: list[int]) -> Iterator[tuple[int, int, bool]]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield 0, 0, True


def refuse(bench: Bench, numbers: list[int]) -> Iterator[tuple[int, int, bool]]:
    yield numbers[0], 0, True
    raise BadInput("found nothing, expected something.")


CPUS = Roster(("cpu", "cpu"), None)


def test_processes_share_the_work_and_a_killed_one_loses_only_what_it_had_in_flight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = __import__("test_workers")  # by the name that a worker can import
    mark = str(tmp_path / "died")
    groups = {"a": range(5), "b": range(5, 8), "empty": []}
    with Crew(CPUS) as crew:
        found = list(
            crew.run(groups, module.die_once, lambda _, n: (mark, n), what="double", least=2)
        )
        assert Path(mark).exists() and "gone at a (SIGKILL" in capsys.readouterr().err
        # Every unit once, although one worker died in the middle; the others went on.
        assert sorted((r.group, r.unit, r.value) for r in found) == sorted(
            (group, n, 2 * n) for group, numbers in groups.items() for n in numbers
        )
        # The same workers again, and one in the place of the dead one.
        again = list(crew.run({"c": range(4)}, module.double, lambda _, n: n, what="again"))
        assert sorted(r.value for r in again) == [0, 2, 4, 6]
        with pytest.raises(BadInput, match="found nothing"):
            list(crew.run({"d": [1, 2]}, module.refuse, lambda _, n: n, what="refused"))
    with Crew(CPUS) as crew, pytest.raises(Gone, match="3 workers died at a, the last one: SIGK"):
        list(crew.run({"a": [1]}, module.die_always, lambda _, n: n, what="poison"))


# --- the same files -------------------------------------------------------------------------------


class Here:
    """Workers in this process: their messages are pickled as on their way elsewhere."""

    near = True

    def __init__(self, roster: Roster, dies_after: int | None = None):
        start = Start("cpu", roster.dtype, 0, (), os.getcwd(), self.near)
        self.benches = {n: Bench(start) for n in range(2)}
        self.messages: deque[tuple[int, bytes]] = deque()
        self.dies_after = dies_after
        for n, bench in self.benches.items():
            self._put(n, hello(bench))

    def _put(self, hand: int, message: tuple[Any, ...]) -> None:
        self.messages.append((hand, pickle.dumps(message)))

    def send(self, hand: int, job: Job, order: Any) -> None:
        job, order = pickle.loads(pickle.dumps((job, order)))
        sent: list[tuple[Any, ...]] = []
        work(self.benches[hand], job, order, sent.append)
        if self.dies_after is not None and len(sent) > self.dies_after:
            sent = [*sent[: self.dies_after], ("gone", "killed by the test")]
            self.dies_after = None
            del self.benches[hand]
        for message in sent:
            self._put(hand, message)

    def receive(self) -> list[tuple[int, tuple[Any, ...]]]:
        hand, message = self.messages.popleft()
        return [(hand, pickle.loads(message))]

    def expected(self) -> int:
        return len(self.benches)

    def close(self) -> None: ...


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file but what says how it was called, and when."""
    found = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("surgeon.json", "report.html")
    }
    if "evaluate.json" in found:  # how long it took is another time another
        found["evaluate.json"] = found["evaluate.json"].partition(b'"times":')[0]
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`here(dies_after)`: two workers in this process; the first dies after so many messages."""

    def use(dies_after: int | None) -> None:
        enter = lambda crew: setattr(crew, "transport", Here(crew.roster, dies_after)) or crew  # noqa: E731
        monkeypatch.setattr(driver.Crew, "__enter__", enter)

    return use


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"w{n} + 3 ?", "answer": str(n)} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_ranking_is_the_same_files_with_several_workers_one_of_which_dies(
    pico_source: tuple[Path, Path], prompts: str, tmp_path: Path, here: Callable[..., None]
):
    from surgeon.rank import rank

    monkeypatched = dict(
        mini_set=prompts, samples=2, max_tokens=12, row_tokens=2, top_k=6, device="cpu",
        dtype="float32", keep_activations=True,
    )  # fmt: skip
    checkpoints = [*map(str, pico_source)]
    whole = rank(checkpoints, out=tmp_path / "one", **monkeypatched)
    here(5)
    shared = rank(checkpoints, out=tmp_path / "two", **monkeypatched, workers=2)
    assert files_of(whole.out) == files_of(shared.out)
    # Also where the first traces say how long a row is.
    monkeypatched |= {"row_tokens": "auto"}
    whole = rank(checkpoints, out=tmp_path / "three", **monkeypatched)
    here(5)
    shared = rank(checkpoints, out=tmp_path / "four", **monkeypatched, workers=2)
    assert whole.settings["row_tokens"] == 1 and files_of(whole.out) == files_of(shared.out)


def test_an_evaluation_resumes_with_another_number_of_workers(
    pico_source: tuple[Path, Path], prompts: str, tmp_path: Path, here: Callable[..., None]
):
    from surgeon.evaluate import evaluate

    settings = dict(task=prompts, samples=2, max_tokens=6, device="cpu", dtype="float32")
    checkpoints = [*map(str, pico_source)]
    whole = evaluate(checkpoints, out=tmp_path / "one", **settings)
    with pytest.MonkeyPatch.context() as patch:
        # Interrupted after some answers of one process...
        from surgeon import evaluate as verb

        patch.setattr(verb, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate(checkpoints, out=tmp_path / "two", **settings)
    for file in (tmp_path / "two.partial" / "traces").glob("*.jsonl"):
        file.write_bytes(b"".join(file.read_bytes().splitlines(True)[::3]))
    # ... it goes on with two, of which one dies.
    here(4)
    shared = evaluate(checkpoints, out=tmp_path / "two", **settings, workers=2)
    assert files_of(whole.out) == files_of(shared.out)


def test_a_sweep_is_the_same_files_whoever_writes_them_near_or_far(
    pico_source: tuple[Path, Path], tmp_path: Path, here: Callable[..., None]
):
    from surgeon.merge import sweep

    first, second = map(str, pico_source)
    asked = dict(a=first, b=second, ratios="0.2,0.5,0.8")
    sweep(out=tmp_path / "one" / "f", **asked)
    here(None)
    report = sweep(out=tmp_path / "two" / "f", **asked, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") and len(report.written) == 3
    # From other nodes the files travel in chunks; a worker that dies has sent a part.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Here, "near", False)
        patch.setattr("surgeon.merge.parted.CHUNK_BYTES", 10_000)
        here(3)
        sweep(out=tmp_path / "far" / "f", **asked, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "far")


# --- one model over several devices ---------------------------------------------------------------


def test_a_model_that_waits_on_the_disk_gives_the_same_files(
    pico_source: tuple[Path, Path], prompts: str, tmp_path: Path
):
    from surgeon.checkpoint import Checkpoint
    from surgeon.live.architecture import device_of
    from surgeon.rank import rank

    spread = "cpu=50KB+disk"
    model: Any = Checkpoint.open(pico_source[0]).model(spread)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"} and str(device_of(model)) == "cpu"
    asked = dict(mini_set=prompts, samples=2, max_tokens=6, row_tokens=2, top_k=6, dtype="float32")
    whole = rank(str(pico_source[0]), out=tmp_path / "one", device="cpu", **asked)
    parted = rank(str(pico_source[0]), out=tmp_path / "two", device=spread, **asked)
    for name in ("traces.jsonl", "weights.safetensors", "scores.json"):
        pair = [ranking.out / "candidates" / "a" / name for ranking in (whole, parted)]
        assert pair[0].read_bytes() == pair[1].read_bytes(), name
    with pytest.raises(BadInput, match="no room on cpu=20KB"):
        Checkpoint.open(pico_source[0]).model("cpu=20KB")


@pytest.mark.parametrize(
    ("device", "several", "says"),
    [
        ("cpu+disk", False, "expected one device: models are spread"),
        ("cpu+tpu", True, "expected auto, cpu, or an accelerator present"),
        ("disk", True, "expected auto, cpu"),
        ("cpu=much+disk", True, "expected a size such as 60GB behind cpu="),
    ],
)
def test_devices_that_cannot_be_are_refused(device: str, several: bool, says: str):
    from surgeon.checkpoint import placement

    with pytest.raises(BadInput, match=says):
        placement(device, "auto", several=several)


# --- which workers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "devices", "device", "found"),
    [
        ("1", (), "auto", None),
        ("auto", (), "cpu", None),
        ("3", (), "cpu", ("cpu", "cpu", "cpu")),
        ("1", ("cpu,cpu",), "auto", ("cpu", "cpu")),
        ("auto", ("cpu", "cpu"), "auto", ("cpu", "cpu")),
    ],
)
def test_the_roster_is_what_was_asked(workers: str, devices: Any, device: str, found: Any):
    asked = roster(Workforce(workers=workers, devices=devices), device)
    assert (asked and asked.devices) == found


@pytest.mark.parametrize(
    ("workers", "devices", "device", "says"),
    [
        ("0", (), "auto", "found --workers 0, expected a number above 0"),
        ("many", (), "auto", "found --workers many"),
        ("3", ("cpu,cpu",), "auto", "found --devices cpu,cpu and --workers 3"),
        ("1", ("cpu,cpu",), "cpu", "found --devices cpu,cpu and --device cpu"),
        ("1", ("cpu,tpu",), "auto", "device is 'tpu'"),
        ("0@ray", (), "auto", "Ray isn't installed|expected at least one worker"),
    ],
)
def test_workers_that_cannot_be_are_refused(workers: str, devices: Any, device: str, says: str):
    with pytest.raises(BadInput, match=says):
        roster(Workforce(workers=workers, devices=devices), device)
