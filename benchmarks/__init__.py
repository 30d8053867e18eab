"""What the plugin costs and saves; README.md says which script answers which question."""
