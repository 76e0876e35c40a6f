"""The GPU's script on the CPU with small shapes, so that it runs where there is one; the plan."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu, scale


def test_every_check_of_the_gpu_runs_and_agrees_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json")])
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["what"] for row in stored["rows"]] == [row.what for row in rows]
    assert not [row.what for row in rows if "FAILED" in row.what or "no time" in row.what]
    checks = {row.check for row in rows}
    assert checks == {"decode", "record", "nex", "transplant", "detectors", "monitor", "distill"}
    # The same machine twice: to the bit in float32. Times are no matter here.
    exact = [row for row in rows if row.what.startswith("float32") and row.met is not None]
    assert len(exact) == 5 and all(row.met for row in exact)
    assert all(row.value in (0, 1) for row in exact)
    assert rows[0].what in capsys.readouterr().out


def test_a_check_that_fails_is_a_row_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch):
    def broken(_: gpu.Bench):
        raise RuntimeError("no kernel")
        yield

    monkeypatch.setitem(gpu.CHECKS, "surgeries", broken)
    bench = gpu.Bench("cpu", gpu.SMALL)
    first, *rest = gpu.run(["surgeries", "detectors"], bench, 60)
    assert first.what == "FAILED: RuntimeError: no kernel" and first.met is False
    assert [row.met for row in rest] == [True]
    assert [row.what for row in gpu.run(["detectors"], bench, 0)] == ["left out: no time"]


def test_the_plan_is_arithmetic_that_can_be_checked_by_hand():
    machine = scale.Machine()
    case = scale.Case("70b", 2, 8, samples=1, mean_tokens=1000, spread=1e-9, replicas=2)
    rate = scale.rates(case, machine)
    # 288 GB of four GPUs less 141.2 GB of weights hold 448 thousand tokens; at most 256 rows.
    assert rate.rows == 256 and rate.load_s == pytest.approx(141.2 / 5)
    took = scale.simulate(case, machine._replace(hours_between_deaths=1e9))
    # Each replica loads one candidate and draws its 8 answers side by side.
    draw = 1000 * 256 / rate.tokens_s + 8 * 1000 / rate.recorded_s
    assert took.loads == 2 and took.hours * 3600 >= rate.load_s + draw - 1e-6
    assert took.hours * 3600 <= rate.load_s + draw + 16 * rate.answer_bytes / 1.25e9 + 1e-6
    # A replica that dies loses at most what it had in flight; the rest is done by others.
    dying = scale.simulate(case, machine._replace(hours_between_deaths=0.005), seed=3)
    assert dying.deaths and dying.hours > took.hours
