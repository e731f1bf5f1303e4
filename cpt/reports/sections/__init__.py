"""The sections of the report page, one file each; a file added here appears on the page."""
