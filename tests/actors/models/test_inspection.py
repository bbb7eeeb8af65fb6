"""What is known of published models."""

from __future__ import annotations

from actors.models.catalogue import EMBEDDERS, PUBLISHED
from actors.models.inspection import catalogue_rows


def test_every_model_of_the_catalogue_has_dimensions_and_a_licence() -> None:
    assert list(PUBLISHED) == list(EMBEDDERS)
    rows = {row["model"]: row for row in catalogue_rows()}
    assert (rows["bge-m3"]["dimensions"], rows["bge-m3"]["licence"]) == (1024, "mit")
    assert (rows["SFR-Embedding-2_R"]["dimensions"], rows["SFR-Embedding-2_R"]["licence"]) == (4096, "cc-by-nc-4.0")
