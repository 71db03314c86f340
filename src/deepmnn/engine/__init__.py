"""The serving engine: sequences in, tokens out, one ragged batch per step."""
