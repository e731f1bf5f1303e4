"""Learning-rate schedules: pure functions of the step, composed of segments and bound to the phases of a plan."""
