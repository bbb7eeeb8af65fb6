"""What a job says of itself: as it runs (`progress`, `metrics`), at its end (`summary`), and later (`report`)."""
