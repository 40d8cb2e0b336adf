"""The process that carries runs: it alone imports langgraph and, at a model call, litellm."""
