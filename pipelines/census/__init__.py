"""What a job has to do: a pass over the ids (`take`), compared with the table (`antijoin`), decided (`selection`)."""
