"""Names in records."""

from __future__ import annotations

from rsparse.evaluation.describe import short


def test_a_text_keeps_its_name_when_its_file_goes(tmp_path):
    """Records of one text would else be two texts'."""
    path = tmp_path / "texts" / "gone.txt"
    path.parent.mkdir()
    path.write_text("a")
    there = short(str(path))
    path.unlink()
    assert short(str(path)) == there == "gone.txt"


def test_a_hub_id_keeps_its_owner_and_a_folder_its_name(tmp_path):
    assert short("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    assert short("allenai/c4:en") == "allenai/c4:en"
    assert short(str(tmp_path)) == tmp_path.name
