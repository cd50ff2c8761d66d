"""The command that compares methods with known answers: its tables, its files and its page."""

import json
from pathlib import Path

import pytest

from benchmarks.faithfulness import page
from benchmarks.faithfulness.__main__ import main
from benchmarks.faithfulness.tasks import TASKS

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "benchmarks" / "results" / "faithfulness.json"


def test_quick_tables_and_files(capsys, tmp_path):
    path = tmp_path / "new" / "numbers.json"
    tasks = ["--tasks", "rare-feature", "rare-time"]
    methods = ["--methods", "input_x_gradient", "integrated_gradients", "random"]
    main(["--quick", *tasks, *methods, "--json", str(path)])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for task in ("rare-feature", "rare-time"):
        assert f"{task}: 10 series of 50 steps and 50 features" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("integrated_gradients")]
    assert [row[1:3] for row in rows] == [["[1]", "1.000"]] * 2
    numbers = json.loads(path.read_text())
    assert list(numbers["tasks"]) == ["rare-feature", "rare-time"]
    assert numbers["tasks"]["rare-time"]["seeds"] == [1]
    assert numbers["tasks"]["rare-time"]["methods"].keys() == set(methods[1:])
    main(["--read", str(path)])
    assert capsys.readouterr().out == text


def results(**values):
    methods = {
        name: dict.fromkeys(TASKS["state"].measures, numbers) for name, numbers in values.items()
    }
    return {"seeds": [1, 2], "number": 2, "networks": {"accuracy": [0.5, 0.7]}, "methods": methods}


def test_methods_within_two_deviations_of_random_are_named():
    """The deviation of the difference is 0.1 for `near` and `far`, so 0.7 is the limit."""
    found = results(random=[0.4, 0.6], near=[0.69, 0.69], far=[0.71, 0.71])
    assert page.no_better_than_random("state", found) == ["near"]
    text = page.caption("state", found)
    assert "No better than random: near." in text
    assert "Networks: accuracy 60.0% ± 10.0%." in text


def test_means_deviations_and_published_numbers():
    row = page.entries("state", "fit", results(fit=[0.25, 0.75])["methods"]["fit"])
    assert row == [f"[{known}] 0.500 ± 0.250" for known in (0.421, 0.549, 0.711, 0.463)]


def test_every_task_has_a_control_and_a_text():
    for name, task in TASKS.items():
        assert "random" in task.methods
        assert name in page.INTRODUCTIONS
        assert set(task.ranked_by) <= set(task.measures) <= set(page.COLUMNS)


def test_the_page_shows_the_committed_numbers():
    numbers = json.loads(COMMITTED.read_text())
    assert (ROOT / "docs" / "faithfulness.md").read_text() == page.markdown(numbers)
    assert list(numbers["tasks"]) == list(TASKS)
    for name, task in numbers["tasks"].items():
        assert list(task["methods"]) == list(TASKS[name].methods)


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_file_that_cannot_be_written_is_reported_first(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([option, str(tmp_path)])
    assert "is a folder, give a file in it" in capsys.readouterr().err
