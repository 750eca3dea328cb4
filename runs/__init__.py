"""What a run writes: run_folder.py, checkpoints.py, plots.py."""
