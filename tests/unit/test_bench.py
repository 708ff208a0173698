"""The benchmark: its arithmetic, its picture, and one small row of it on a real mount."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench.costs import parse_summary
from tests.bench.counted import COUNTED
from tests.bench.picture import draw, target
from tests.bench.processes import Failed
from tests.bench.results import GOALS, ROWS, TIMES, Goal, Results, Series, amount, factor, goal_text, table

ROOT = Path(__file__).resolve().parents[2]


def filled() -> Results:
    results = Results()
    for seconds in (2.0, 1.0, 4.0):
        results.add("copy", "attachfs", seconds, 1001)
    results.add("copy", "rclone", 30.0)
    results.add("copy", "32 connections", 0.8)
    results.add("idle", "attachfs", 61.5)
    results.add("cold", "attachfs", 1.0)
    return results


def goal(row: str, rival: str) -> Goal:
    return next(one for one in GOALS if (one.row, one.rival) == (row, rival))


def test_every_goal_is_of_a_row() -> None:
    assert {one.row for one in GOALS} <= {row.name for row in ROWS}


def test_ratios_are_of_medians_and_say_what_the_goal_says() -> None:
    verdicts = {(one.goal.row, one.goal.rival): one for one in filled().verdicts()}
    faster = verdicts["copy", "rclone"]
    assert (faster.ratio, faster.met) == (
        15.0,
        True,
    )  # 30 s beside a median of 2 s: at least 10 times as fast
    slower = verdicts["copy", "32 connections"]
    assert (slower.ratio, slower.met) == (2.5, False)  # at most twice
    absolute = verdicts["idle", ""]
    assert (absolute.ratio, absolute.met) == (61.5, False)
    assert verdicts["cold", "curl"].met is None
    assert ("list", "rclone") not in verdicts


def test_the_best_of_each_is_told_too() -> None:
    best = {(one.goal.row, one.goal.rival): one.ratio for one in filled().verdicts(best=True)}
    assert best["copy", "rclone"] == 30.0


def test_a_goals_line_is_where_attachfs_meets_it() -> None:
    series = filled().series["copy"]
    assert target(goal("copy", "rclone"), series) == 2.5
    assert target(goal("copy", "32 connections"), series) == 1.6
    assert target(goal("idle", ""), {}) == 60
    assert target(goal("copy", "rclone"), {"attachfs": Series([1.0])}) is None


def test_amounts_and_factors_are_formatted_for_people() -> None:
    assert [amount(value, "s") for value in (12.34, 0.0123, 0.00012)] == ["12.3 s", "12.3 ms", "120 µs"]
    assert amount(61.4, "MiB") == "61 MiB"
    assert amount(1.234, "CPU s") == "1.23 CPU s"
    assert factor(123.4) == f"123 {TIMES}"
    assert goal_text(goal("mount", "")) == "at most 0.8 s"
    assert goal_text(goal("cold", "curl")) == f"at least 0.65 {TIMES} curl"


def test_the_table_has_rows_then_goals_then_notes() -> None:
    results = filled()
    results.note("one thing")
    results.note("one thing")
    text = table(results)
    assert text.index("1001") < text.index("MISSED") < text.index("* one thing")
    assert text.count("one thing") == 1
    assert "not measured" in text


def test_the_picture_is_well_formed_and_has_every_row_and_goal() -> None:
    results = filled()
    results.add("idle", "<&>", 1.0)
    root = ET.fromstring(draw(results, "a caption & more"))
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a caption & more" in texts
    assert "<&>" in texts
    assert sum(text.startswith("goal ") for text in texts) == 3
    assert not any("met" in text or "missed" in text for text in texts)
    lines = list(root.iter("{http://www.w3.org/2000/svg}line"))
    assert len(lines) == 3  # two of the copy's, and the memory's; nobody measured curl


def test_what_was_measured_comes_back_from_json() -> None:
    results = filled()
    saved = json.loads(json.dumps(results.as_json({})))
    again = Results()
    again.load(saved)
    assert table(again) == table(results)


@pytest.mark.mount
def test_one_row_is_measured_on_a_real_mount_and_nothing_is_left_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--only", "list", f"--dir={tmp_path}"]
    files = tmp_path / "found.json", tmp_path / "found.svg"
    done = subprocess.run(
        [*command, f"--json={files[0]}", f"--svg={files[1]}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(files[0].read_text())
    assert not any(note.startswith("list:") for note in found["notes"]), found["notes"]
    assert found["rows"]["list"]["attachfs"]["requests"][0] >= 20
    assert found["rows"]["list"]["one by one"]["median"] >= 20 * 0.05
    ET.fromstring(files[1].read_text())
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_straces_table_is_read() -> None:
    text = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           6       100         3 openat
 40.00    0.000400           2       200           close
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           3       300         3 total
"""
    assert parse_summary(text) == {"close": 200, "openat": 100}
    with pytest.raises(Failed, match="nothing"):
        parse_summary("strace: detached\n")


@pytest.mark.mount
def test_the_costs_of_a_file_are_counted_on_a_real_mount(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--costs", f"--dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    for what in COUNTED:
        assert float(rows[what]) > 0, rows
    assert float(rows["kernel requests"]) >= 3  # a file is opened, read and released
    if shutil.which("strace"):
        assert float(rows["system calls but futex"]) > 10
