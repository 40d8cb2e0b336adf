"""What each RPC and each background job does: a transaction around rules."""
