"""Pure: what messages mean. No sockets, files, clock, asyncio or pycrdt in here."""
