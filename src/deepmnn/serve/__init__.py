"""The HTTP server: the endpoints that clients of OpenAI, Anthropic and vLLM know."""
