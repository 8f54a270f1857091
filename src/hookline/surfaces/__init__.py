"""Doors: how a request becomes a call, and how its reply goes back.

Start reading at http_front.py (all connections), then front_door.py (who answers), openai.py (a request becomes a call)."""
