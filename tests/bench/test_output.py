"""Tables and csv files of the benchmarks."""

import pandas as pd
import pytest

from solo_minent.bench import output
from solo_minent.bench.output import check_writable, figure, print_rows, write_rows
from solo_minent.errors import UserError


def test_a_csv_names_versions_and_hardware_and_no_folder(tmp_path):
    csv = tmp_path / "new" / "rows.csv"
    write_rows(csv, [{"loss": "mec", "ms": 1.5}, {"loss": "twist", "ms": 2.5}], {"sizes": "full"})
    rows = pd.read_csv(csv)
    assert rows[["loss", "ms", "sizes"]].values.tolist() == [
        ["mec", 1.5, "full"],
        ["twist", 2.5, "full"],
    ]
    assert {"packages", "solo_learn", "python", "cpus", "cpu", "threads", "gpus"} <= set(rows)
    assert "command" not in rows and str(tmp_path) not in csv.read_text()
    assert rows["cpu"].str.len().min() > 2


def test_a_table_shows_every_row(capsys):
    print_rows("Times", [{"loss": "mec", "ms": 1234.5}, {"loss": "twist", "ms": 0.01234}], "note")
    shown = capsys.readouterr().out
    for word in ("Times", "note", "mec", "twist", "1,234", "0.0123"):
        assert word in shown


def test_figures_have_three_digits():
    assert [figure(value) for value in (0.12345, 12.345, 12345.6)] == ["0.123", "12.3", "12,346"]


def test_what_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "rows.csv"):
        with pytest.raises(UserError, match="results cannot be written"):
            check_writable(path)
    with pytest.raises(UserError, match="results cannot be written"):
        check_writable(tmp_path / "new" / f"{'n' * 300}.csv")
    for path in (tmp_path / "new" / "deeper" / "rows.csv", tmp_path / "rows.csv"):
        check_writable(path)
    # Folders are made when there is something to write.
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_benchmark_says_of_itself_goes_before_what_the_process_knows(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"ms": 1}], {"threads": 7})
    assert pd.read_csv(tmp_path / "rows.csv")["threads"].tolist() == [7]


def test_a_fingerprint_is_of_settings_code_and_machine(monkeypatch, tmp_path):
    first = output.fingerprint({"pairs": 5})
    assert output.fingerprint({"pairs": 5}) == first != output.fingerprint({"pairs": 6})
    monkeypatch.setattr(output, "_cpu", lambda: "another")
    other = output.fingerprint({"pairs": 5})
    (tmp_path / "bench").mkdir()
    (tmp_path / "losses.py").write_text("x = 1\n")
    monkeypatch.setattr(output, "__file__", str(tmp_path / "bench" / "output.py"))
    code = output.fingerprint({"pairs": 5})
    (tmp_path / "losses.py").write_text("x = 2\n")
    assert len({first, other, code, output.fingerprint({"pairs": 5})}) == 4
