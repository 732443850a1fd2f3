# syntax=docker/dockerfile:1
# peg-rag serve in a container, as a user without rights, with the store in the volume /data.
#
#   docker build -t peg-rag .
#   docker run -p 127.0.0.1:8000:8000 -v peg-data:/data -e PEG_RAG_API_KEYS=… peg-rag
#
# The bundled model peg-mini needs no network. For PEG itself: -e PEG_RAG_MODEL=TownsWu/PEG, and a volume for
# /data/huggingface, where it is kept once downloaded. On a machine without a GPU, build with the index of torch's CPU
# wheels, which are a tenth of the size: --build-arg PIP_EXTRA_INDEX_URL=…

ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
RUN python -m venv /opt/peg-rag
WORKDIR /src
# What changes with every commit comes last, so that the dependencies' layer is kept.
COPY pyproject.toml README.md LICENSE constraints.txt ./
RUN mkdir peg_rag && touch peg_rag/__init__.py \
    && /opt/peg-rag/bin/pip install -c constraints.txt ".[serve,ingest,cli]" \
    && /opt/peg-rag/bin/pip uninstall -y peg-rag
COPY peg_rag peg_rag
RUN /opt/peg-rag/bin/pip install --no-deps .

FROM python:${PYTHON}-slim
COPY --from=build /opt/peg-rag /opt/peg-rag
RUN useradd --create-home --uid 10001 peg && mkdir /data && chown peg /data
ENV PATH=/opt/peg-rag/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 HF_HOME=/data/huggingface PEG_RAG_MODEL=peg-mini
USER peg
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
# SIGTERM drains: give `docker stop` more than the server's own 30 seconds (--time 40).
STOPSIGNAL SIGTERM
ENTRYPOINT ["peg-rag"]
CMD ["serve", "/data/kb", "--host", "0.0.0.0", "--port", "8000"]
