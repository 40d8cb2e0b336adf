"""What authors of graphs import: metered models and guarded tools."""

from cogni.graph.bluesky import post_to_bluesky
from cogni.graph.chat import ChatModel, chat_model
from cogni.graph.guarding import ToolDenied
from cogni.graph.invocation import Credential, MissingCredentialError, credential, invocation_id
from cogni.graph.mcp import mcp_tools
from cogni.graph.policy import Effect, ToolPolicy, policy_of, tool, with_policy

__all__ = [
    "ChatModel",
    "Credential",
    "Effect",
    "MissingCredentialError",
    "ToolDenied",
    "ToolPolicy",
    "chat_model",
    "credential",
    "invocation_id",
    "mcp_tools",
    "policy_of",
    "post_to_bluesky",
    "tool",
    "with_policy",
]
