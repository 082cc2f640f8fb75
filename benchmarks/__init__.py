"""Speed and ground-truth suites; run from the project's folder, never part of the tests."""
