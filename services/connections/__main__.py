"""python -m services.connections: serve, migrate the database, or print the settings."""

from __future__ import annotations

from services.connections.composition import open_application
from services.connections.settings import ConnectionsSettings
from services.runtime.command import service_command

app = service_command(ConnectionsSettings, open_application, package="services.connections")

if __name__ == "__main__":
    app()
