"""Every setting of every process, one file a section: what there is, what it means, and how it is read."""

from streamer.settings.load import Settings, SettingsError, load_settings

__all__ = ["Settings", "SettingsError", "load_settings"]
