"""The APIs that clients speak: one file for each, with its `router`, and the parts that they share.

    body of a request ─► prompt, SamplingParams        sampling.py, thinking.py, tools.py
    chunks ─► body of the answer, or events            usage.py, logprobs.py

None of that knows HTTP; sse.py sends what is made.
"""

from deepmnn.serve.protocols import chat, completions, messages, responses

ROUTERS = (chat.router, completions.router, messages.router, responses.router)
