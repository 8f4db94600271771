"""What everything stands on: building objects, errors, files, ranks, seeds."""
