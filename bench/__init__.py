"""HOW it is measured: timing protocol, operation costs, accuracy, reports."""
