"""What report.py is made of: reading runs, tables, figures, the page."""
