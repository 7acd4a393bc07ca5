"""The native engine: an exported graph becomes a plan that C++ runs in one call."""
