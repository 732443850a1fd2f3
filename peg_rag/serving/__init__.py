"""The HTTP server: OpenAI-compatible embeddings, search, cited answers and documents over one store.

`peg_rag.serving.app.create_app` creates the FastAPI application, `peg_rag.serving.launch.serve` runs it in uvicorn with
limits on every connection. Needs the `serve` extra.
"""
