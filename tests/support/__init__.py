"""What several tests import: the very small pipeline, processes that start fast, and waiting."""
