"""What both tiers agree on: the contract, the store and its scripts, the client, the command."""
