"""What each RPC and each background job does: transactions and provider calls around the rules."""
