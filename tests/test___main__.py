"""`python -m laplace_kit` is the command line."""

import runpy

import pytest

import laplace_kit as lk


def test_runs_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["laplace-kit", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("laplace_kit", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.endswith(f" {lk.__version__}\n")
