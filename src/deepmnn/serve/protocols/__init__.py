"""The APIs that clients speak, a file each; every one has its `router`.

    request.py ─► chat, completions, responses, messages: body → prompt and SamplingParams
                                                        : chunks → body, or events (sse.py)

That part of each knows no HTTP.
"""

from deepmnn.serve.protocols import chat

ROUTERS = (chat.router,)
