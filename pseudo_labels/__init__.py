"""A teacher's similarities become labels: rules.py, calibration.py; label_quality.py measures how good they are."""
