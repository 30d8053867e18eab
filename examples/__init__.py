"""Programs that show what the plugin does."""
