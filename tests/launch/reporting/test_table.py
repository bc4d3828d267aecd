"""Tests the tables that compare runs, on runs written by hand."""

from launch.reporting import text_table
from launch.reporting.table import compare


def test_the_row_of_a_run_by_hand(tmp_path, write_run):
    row = compare(*write_run(tmp_path / "run"))
    assert row == {
        "seeds": "3",
        "updates": "2,000",
        "chance": "0.2500",
        "accuracy": "0.7500 +- 0.2500",
        "worst seed": "0.5000",
        "updates to 90%": "13",  # seeds reach it at 20, 10 and 10
        "seconds": "1,234",
        "parameters": "23,118",
    }


def test_the_row_of_one_seed_of_some_seeds_and_of_numbers_that_are_not_finite(tmp_path, write_run):
    summary, lines = write_run(tmp_path / "run", accuracy=(0.5,), validation=[(10, 0.2)])
    row = compare(summary, lines)
    assert (row["accuracy"], row["worst seed"], row["updates to 90%"]) == ("0.5000", "0.5000", "-")
    lines = [{"step": 40, "valid/accuracy": [0.9, 0.1]}]
    summary["metrics"]["test/accuracy"] = {"mean": None, "std": None, "per_seed": [1.0, None]}
    row = compare(summary, lines)
    assert (row["accuracy"], row["worst seed"]) == ("not finite", "not finite")
    assert row["updates to 90%"] == "40 (1 of 2 seeds)"
    del summary["metrics"]["test/accuracy"]
    row = compare(summary, [])
    assert (row["accuracy"], row["worst seed"], row["updates to 90%"]) == ("-", "-", "-")


def test_tables_are_aligned_and_fill_in_what_a_row_lacks():
    rows = [{"a": "1", "b": "x +- y"}, {"a": "long", "c": "|"}]
    assert text_table.format_columns(rows) == "a     b       c\n1     x +- y  -\nlong  -       |"
    assert text_table.format_markdown(rows).splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | x ± y | - |",
        r"| long | - | \| |",
    ]
