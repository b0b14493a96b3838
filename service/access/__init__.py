"""Who may call the gateway: API keys, and what each of them may see and do."""
