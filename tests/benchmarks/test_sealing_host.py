"""The scan of a serving host finds a key in whatever form; a whole host is the benchmark's."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("cryptography")

from benchmarks.sealing.host import control, forms_of, keys_in, pieces, rows
from benchmarks.sealing.scan import blocks_of
from g2d.vault.keys import SigningKey
from g2d.vault.model_signing import ExportKey


def test_keys_are_found_in_the_files_that_hold_them_and_nowhere_else(tmp_path):
    signing, export = SigningKey.generate(), ExportKey.generate()
    signing.write(tmp_path / "signing.key")
    export.write(tmp_path / "export.key")
    signing.public.write(tmp_path / "signing.pub")
    keys = {
        "signing": signing._key.private_bytes_raw(),
        "export": export._key.private_numbers().private_value.to_bytes(32, "big"),
        "another": os.urandom(32),
    }
    found = keys_in(pieces(tmp_path), keys)
    assert {(name, file) for name, _, file in found} == {
        ("signing", "signing.key"), ("export", "export.key"),
    }  # fmt: skip


def test_each_form_that_is_planted_is_found(tmp_path):
    keys = {"one": os.urandom(32), "two": os.urandom(32)}
    told = control(tmp_path / "control", keys, blocks_of([os.urandom(640)]))
    assert told == {"planted": 2 * len(forms_of(bytes(32))), "found": told["planted"], "blocks": 1}


def test_the_table_says_what_was_found():
    told = {"keys": 3, "files": 7, "keys found": [["a", "raw", "f"]], "blocks found": {"f": 2},
            "control": {"planted": 4, "found": 3, "blocks": 0}, "own files": 4}  # fmt: skip
    reached = [str(row[-1]) for row in rows(told)]
    assert reached == ["1", "2", "3 of 4", "NO; 4 of 4"]
