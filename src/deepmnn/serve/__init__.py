"""An HTTP server around one model, for the clients of OpenAI's and Anthropic's APIs."""
