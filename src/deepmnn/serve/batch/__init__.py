"""Requests from a file, answers to a file, in the format of OpenAI's Batch API."""
