"""`python -m services.executor`: serve the Executor, or `migrate` its schema."""

from services.executor.composition import compose
from services.executor.settings import ExecutorSettings
from services.runtime.command import service_command

app = service_command(ExecutorSettings, compose, package="services.executor")

if __name__ == "__main__":
    app()
