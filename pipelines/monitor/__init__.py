"""Reports on a job: while it runs (`progress`, `metrics`), at its end (`summary`), and afterwards (`report`)."""
