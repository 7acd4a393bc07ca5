"""Atomic writes: the old file or the new one, and clear words where nothing can be written."""

from __future__ import annotations

import os

import pytest

from paredown import files
from paredown.errors import InputError


def test_a_write_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "one")
    files.write_text(path, "two\n")
    assert path.read_text() == "two\n"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_writable_makes_the_folder_or_says_why_not(tmp_path):
    assert files.writable(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        files.writable(tmp_path / "file" / "x")


def test_a_mere_proof_leaves_nothing(tmp_path):
    files.writable(tmp_path / "c" / "d", keep=False)
    assert not (tmp_path / "c").exists()
    (tmp_path / "e").mkdir()
    files.writable(tmp_path / "e", keep=False)
    assert (tmp_path / "e").is_dir()
