"""The only SQL of the Scheduler, a module per noun. Use cases open the transactions."""
