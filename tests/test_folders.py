"""Where weights are looked for, and folders that cannot be written to."""

import os
import tempfile
from pathlib import Path

import pytest

from uniportrait_lite.errors import ConfigError
from uniportrait_lite.folders import writable_folder


def test_a_folder_is_made_and_stays_empty(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "give another") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_file_in_the_way_is_said_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot write in .*file.*: give another"):
            writable_folder(place, "give another")


def test_no_permission_is_said_with_what_to_do():
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: others than its owner cannot even look into it
        os.chmod(name, 0o755)
        locked = Path(name, "locked")
        locked.mkdir(mode=0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write everywhere: try as nobody
        try:
            for place in (locked, locked / "run"):
                with pytest.raises(ConfigError, match="Permission denied.*: give another"):
                    writable_folder(place, "give another")
        finally:
            os.seteuid(user)
        assert os.listdir(locked) == []
