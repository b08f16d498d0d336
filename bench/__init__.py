"""What is timed, and the registry of cases that the tests check first."""
