"""What Connections reaches in the outside world."""
