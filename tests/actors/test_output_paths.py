"""Nothing that exists is written over unless the user says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.output_paths import OutputExists, refuse_file, refuse_folder


def test_a_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    refuse_file(tmp_path / "new")
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OutputExists, match=r"output .*there exists; --force replaces it"):
        refuse_file(tmp_path / "there")
    refuse_file(tmp_path / "there", force=True)
    with pytest.raises(OutputExists, match="is a folder; name a file"):
        refuse_file(tmp_path, force=True)


def test_a_folder_with_something_in_it_is_used_only_where_we_made_it(tmp_path: Path) -> None:
    refuse_folder(tmp_path / "new")
    refuse_folder(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(OutputExists, match=r"--folder .* exists and is not an empty folder"):
            refuse_folder(place, marker=".made", name="--folder")
    (tmp_path / ".made").touch()
    refuse_folder(tmp_path, marker=".made")
