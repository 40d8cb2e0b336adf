"""The `cogni` command: runs, grants, schedules, connections and the ledger from a terminal."""
