"""Workers on a real Ray cluster of two nodes: `make test-ray`; left out where Ray isn't there."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import BadInput
from surgeon.settings.workforce import Workforce
from surgeon.workers import roster

ray: Any = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray's own: of its coming defaults, and of sockets that a killed node leaves.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each, in processes of their own, on this machine."""
    nodes = importlib.import_module("ray.cluster_utils")
    made = nodes.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def asked(pico_source: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"w{n} + 3 ?", "answer": str(n)} for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(
        checkpoints=[*map(str, pico_source)], mini_set=str(file), samples=2, max_tokens=12,
        row_tokens=2, top_k=6, device="cpu", dtype="float32",
    )  # fmt: skip


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("surgeon.json", "report.html")
    }


def test_a_node_that_dies_loses_what_its_worker_had_in_flight(
    cluster: Any,
    asked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from surgeon.rank import rank, shards

    one = rank(out=tmp_path / "one", **asked)
    node = next(iter(cluster.worker_nodes))
    made: list[Any] = []
    add = shards.Files.add

    def kill(files: Any, key: Any, value: Any) -> None:
        made.append(key)
        if len(made) == 30:
            cluster.remove_node(node, allow_graceful=False)
        add(files, key, value)

    monkeypatch.setattr(shards.Files, "add", kill)
    two = rank(out=tmp_path / "two", **asked, workers="ray")
    assert files_of(one.out) == files_of(two.out)
    # It had begun, on another node than the driver's; the other one did its work.
    assert f"-{node.node_id[:6]} cpu is gone at" in capsys.readouterr().err
    # Every answer is drawn and recorded; nothing comes twice but what was in flight.
    assert len(made) == 2 * len(set(made)) * 2


def test_an_address_without_a_cluster_is_refused():
    with pytest.raises(BadInput, match="expected at least one worker"):
        roster(Workforce(workers="0@ray"))
