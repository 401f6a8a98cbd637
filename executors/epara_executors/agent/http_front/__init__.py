"""The OpenAI-compatible HTTP front of one executor. Optional: only this room imports starlette and uvicorn.

server.py   the socket and the life of uvicorn inside the agent's event loop
app.py      routes: what comes in, which reader reads it, which shape it leaves in
fields.py   one JSON body read field by field; what nobody read is refused by name
prompts.py  chat and completion bodies as requests of the Open Inference Protocol
shapes.py   answers as chat completions and as text completions, whole and in pieces
stream.py   server-sent events; work that ends when its client leaves
embed.py    embeddings: one request per input
errors.py   refusals as HTTP statuses and OpenAI's error objects

Everything else is the request handler's: admission, order, offload, deadlines are those of gRPC requests.
"""
