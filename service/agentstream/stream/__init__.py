"""The core without I/O: the SSE codec, the transcript, one stream machine for each API, and views.

Nothing here may import asyncio, redis or aiohttp.
"""
