"""What surrounds every RPC of every service."""

from services.runtime.interceptors.authentication import Gatekeeper
from services.runtime.interceptors.observation import Observer
from services.runtime.interceptors.pipeline import Deadlines, Pipeline

__all__ = ["Deadlines", "Gatekeeper", "Observer", "Pipeline"]
