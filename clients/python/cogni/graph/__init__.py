"""What authors of graphs import: metered models and guarded tools."""

from cogni.graph.bluesky import post_to_bluesky
from cogni.graph.chat import ChatModel, chat_model
from cogni.graph.github import list_pull_requests, post_github_comment, read_pull_request
from cogni.graph.guarding import ToolDenied
from cogni.graph.http import http_request, http_request_tool
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
    "http_request",
    "http_request_tool",
    "invocation_id",
    "list_pull_requests",
    "mcp_tools",
    "policy_of",
    "post_github_comment",
    "post_to_bluesky",
    "read_pull_request",
    "tool",
    "with_policy",
]
