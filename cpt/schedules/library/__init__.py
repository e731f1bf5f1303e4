"""Named schedules, one file each: `build(spec, span, start) -> list of segments`."""
